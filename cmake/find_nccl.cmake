# Sets NCCL_INCLUDE_DIR and NCCL_LIBRARY to what tests and benchmarks can use of an NCCL on this machine: the system's, or
# the one that pip installs beside torch. The library itself needs neither: it looks for NCCL when it runs.
find_package(Python COMPONENTS Interpreter QUIET)
if(Python_FOUND)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import nvidia.nccl; print(next(iter(nvidia.nccl.__path__)))"
    OUTPUT_VARIABLE nccl_package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(NCCL_INCLUDE_DIR nccl.h HINTS ${nccl_package}/include)
find_library(NCCL_LIBRARY NAMES nccl libnccl.so.2 HINTS ${nccl_package}/lib)
mark_as_advanced(NCCL_INCLUDE_DIR NCCL_LIBRARY)
