# The TensorRT modules: one for each major version whose headers are found. They link to no library of NVIDIA but CUDA's
# runtime, statically, and look for TensorRT itself when a model is opened.
#
#   cmake ... -DEDGEMED_TENSORRT_INCLUDE_DIRS="/opt/TensorRT-10/include;/opt/TensorRT-11/include"
#             -DEDGEMED_TENSORRT_RTX_INCLUDE_DIR=/opt/TensorRT-RTX/include
set(named "${EDGEMED_TENSORRT_INCLUDE_DIRS}")
find_path(EDGEMED_TENSORRT_INCLUDE_DIRS NvInferRuntime.h DOC "Folders of the headers of classic TensorRT, one a major version")
if(NOT named)
  set(EDGEMED_TENSORRT_FOUND "${EDGEMED_TENSORRT_INCLUDE_DIRS}" CACHE INTERNAL
    "what nobody named, but lay in a default folder")
endif()
set(EDGEMED_TENSORRT_RTX_INCLUDE_DIR "" CACHE PATH "Folder of the headers of TensorRT-RTX")
find_path(EDGEMED_CUDA_INCLUDE_DIR cuda_runtime_api.h
  PATHS /usr/local/cuda/include /usr/local/cuda/targets/aarch64-linux/include DOC "Folder of the headers of CUDA")
find_library(EDGEMED_CUDART cudart_static PATHS /usr/local/cuda/lib64 /usr/local/cuda/targets/aarch64-linux/lib
  DOC "CUDA's runtime library: libcudart_static.a, or a shared one")

set(EDGEMED_MODULE_EXPORTS "${CMAKE_CURRENT_LIST_DIR}/../cmake/module.map")
function(edgemed_tensorrt_module name include library)
  add_library(${name} MODULE src/tensorrt.cpp src/tensorrt_engine.cpp)
  set_target_properties(${name} PROPERTIES PREFIX "" LIBRARY_OUTPUT_DIRECTORY "${EDGEMED_MODULE_DIR}"
    BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
  # NVIDIA's headers warn of their own deprecations.
  target_include_directories(${name} SYSTEM PRIVATE "${include}" "${EDGEMED_CUDA_INCLUDE_DIR}")
  target_compile_definitions(${name} PRIVATE EDGEMED_TENSORRT_LIBRARY="${library}" ${ARGN})
  target_link_libraries(${name} PRIVATE edgemed_files "${EDGEMED_CUDART}" Threads::Threads ${CMAKE_DL_LIBS} rt)
  target_link_options(${name} PRIVATE "LINKER:--version-script=${EDGEMED_MODULE_EXPORTS}" "LINKER:-z,defs")
  install(TARGETS ${name} LIBRARY DESTINATION ${EDGEMED_INSTALL_MODULES})
  message(STATUS "TensorRT: ${name} from ${include}, for ${library}")
endfunction()

if(NOT EDGEMED_TENSORRT_INCLUDE_DIRS AND NOT EDGEMED_TENSORRT_RTX_INCLUDE_DIR)
  message(STATUS "TensorRT: no module, no NvInferRuntime.h (EDGEMED_TENSORRT_INCLUDE_DIRS, EDGEMED_TENSORRT_RTX_INCLUDE_DIR)")
elseif(NOT EDGEMED_CUDA_INCLUDE_DIR OR NOT EDGEMED_CUDART)
  message(WARNING "TensorRT: no module, CUDA is not found (EDGEMED_CUDA_INCLUDE_DIR, EDGEMED_CUDART)")
else()
  foreach(include IN LISTS EDGEMED_TENSORRT_INCLUDE_DIRS)
    if(include)
      set(major "")
      if(EXISTS "${include}/NvInferVersion.h")
        file(STRINGS "${include}/NvInferVersion.h" major
          REGEX "define (NV_TENSORRT_MAJOR|TRT_MAJOR_ENTERPRISE) +[0-9]+")
      endif()
      string(REGEX REPLACE ".*MAJOR[A-Z_]* +([0-9]+).*" "\\1" major "${major}")
      if(NOT major GREATER_EQUAL 10)
        set(reason "TensorRT in ${include} is version '${major}'; edgemed needs 10.3 or newer")
        if(NOT include STREQUAL EDGEMED_TENSORRT_FOUND)
          message(FATAL_ERROR "${reason}")
        endif()
        message(WARNING "${reason}: no module is built for it")
        continue()
      endif()
      edgemed_tensorrt_module(edgemed_tensorrt${major} "${include}" libnvinfer.so.${major})
    endif()
  endforeach()
  if(EDGEMED_TENSORRT_RTX_INCLUDE_DIR)
    edgemed_tensorrt_module(edgemed_tensorrt_rtx "${EDGEMED_TENSORRT_RTX_INCLUDE_DIR}" libtensorrt_rtx.so.1
      EDGEMED_TENSORRT_RTX)
  endif()
endif()
