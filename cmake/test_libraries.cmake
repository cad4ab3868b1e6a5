# aliquot_find(package url hash): the system's copy of a library that tests or benchmarks use, else a pinned download.
include(FetchContent)

function(aliquot_find package url hash)
  find_package(${package} CONFIG QUIET)
  if(NOT ${package}_FOUND)
    message(STATUS "${package} is not installed: fetching ${url}")
    FetchContent_Declare(${package} URL ${url} URL_HASH SHA256=${hash} DOWNLOAD_EXTRACT_TIMESTAMP ON EXCLUDE_FROM_ALL
                         SYSTEM)
    FetchContent_MakeAvailable(${package})
  endif()
endfunction()
