# A sanitizer watches only the code that was built with it, so ALIQUOT_SANITIZE holds for every target.
if(ALIQUOT_SANITIZE)
  add_compile_options(-fsanitize=${ALIQUOT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  add_link_options(-fsanitize=${ALIQUOT_SANITIZE})
endif()
