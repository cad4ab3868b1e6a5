# aliquot_compile_for_isa(sources): gives src/cpu/*_avx2.cpp and *_avx512.cpp their instruction sets, or, where the
# processor is not x86-64, takes them out of the list. These files run only after a check of the processor, so they must
# define nothing inline that another file could be linked to.
function(aliquot_compile_for_isa list)
  set(avx2 -mavx2 -mfma -mf16c)
  # g++ 12 takes the undefined operand of its own intrinsics for a mistake (GCC bug 105593).
  set(avx512 -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  foreach(isa avx2 avx512)
    set(files ${${list}})
    list(FILTER files INCLUDE REGEX "_${isa}\\.cpp$")
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
      set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${${isa}}")
    else()
      list(REMOVE_ITEM ${list} ${files})
    endif()
  endforeach()
  set(${list} ${${list}} PARENT_SCOPE)
endfunction()
