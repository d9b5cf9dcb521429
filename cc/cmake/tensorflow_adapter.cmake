# add_tensorflow_library(TARGET PACKAGE SOURCES): a library that registers something with the
# TensorFlow in the folder PACKAGE when it is loaded.
function(add_tensorflow_library target package sources)
  add_library(${target} SHARED ${sources})
  target_include_directories(${target} SYSTEM PRIVATE ${package}/include)
  target_compile_definitions(${target} PRIVATE EIGEN_MAX_ALIGN_BYTES=64)
  target_link_libraries(${target} PRIVATE
    tf_deformable_adapters tf_deformable_kernels ${package}/libtensorflow_framework.so.2)
  target_link_options(${target} PRIVATE
    LINKER:--version-script,${PROJECT_SOURCE_DIR}/cmake/adapter.map)
  set_target_properties(${target} PROPERTIES
    LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/adapter.map LINK_DEPENDS_NO_SHARED ON)
endfunction()

# add_tensorflow_adapter(VERSION PACKAGE): the adapter for the TensorFlow of this version, as 2.21.0,
# whose package is the folder PACKAGE. (From 2.20 on the headers do not tell the version.)
#
# It is the library that a process loads, and takes the kernels from the folder that it lies in.
#
# Where the TensorFlow has the headers of XLA's FFI there is a second library, which makes the
# operators known to its XLA compiler. It is not part of the first one: that loads where there is
# libtensorflow_framework alone.
function(add_tensorflow_adapter version package)
  set(include ${package}/include)
  if(NOT EXISTS ${include}/tensorflow/core/framework/op_kernel.h)
    message(FATAL_ERROR "There is no TensorFlow in ${package}")
  endif()
  string(REGEX REPLACE "\\.[0-9]+$" "" minor "${version}")

  file(GLOB sources CONFIGURE_DEPENDS adapters/tensorflow/*.cc kernels/base/older_libstdcxx.cc)
  if(NOT TF_DEFORMABLE_CUDA)
    list(FILTER sources EXCLUDE REGEX "(_cuda_kernel|cuda_context)\\.cc$")
  endif()
  set(target tf_deformable_tensorflow_${minor})
  add_tensorflow_library(${target} ${package} "${sources}")

  set(xla false)
  if(EXISTS ${include}/xla/ffi/api/ffi.h)
    set(xla true)
    if(NOT TARGET tf_deformable_xla)
      add_xla_handlers(${include})
    endif()
    file(GLOB sources CONFIGURE_DEPENDS adapters/tensorflow_xla/*.cc)
    list(APPEND sources adapters/tensorflow/registration.cc kernels/base/older_libstdcxx.cc)
    if(TF_DEFORMABLE_CUDA)
      list(APPEND sources adapters/tensorflow/cuda_context.cc adapters/tensorflow/tf_executor.cc)
    else()
      list(FILTER sources EXCLUDE REGEX "cuda_lowering\\.cc$")
    endif()
    set(lowering tf_deformable_xla_tensorflow_${minor})
    add_tensorflow_library(${lowering} ${package} "${sources}")
    target_include_directories(${lowering} SYSTEM PRIVATE
      ${include}/external/highwayhash ${include}/external/farmhash_archive/src)
    target_link_libraries(${lowering} PRIVATE
      tf_deformable_xla ${package}/libtensorflow_cc.so.2)
    add_dependencies(${target} ${lowering})
  else()
    message(STATUS "TensorFlow ${version} has no headers of XLA's FFI: its XLA compiler will not "
      "know the operators")
  endif()

  execute_process(COMMAND ${CMAKE_CXX_COMPILER} --version OUTPUT_VARIABLE compiler)
  string(REGEX REPLACE "\n.*" "" compiler "${compiler}")
  set(cuda null)
  set(architectures "")
  if(TF_DEFORMABLE_CUDA)
    set(cuda "\"${CMAKE_CUDA_COMPILER_VERSION}\"")
    list(JOIN TF_DEFORMABLE_CUDA_ARCHITECTURES "\", \"" architectures)
    set(architectures "\"${architectures}\"")
  endif()
  set(header ${CMAKE_CURRENT_BINARY_DIR}/${target})
  configure_file(adapters/tensorflow/build_info.h.in ${header}/build_info.h @ONLY)
  target_include_directories(${target} PRIVATE ${header})
endfunction()
