# add_xla_handlers(INCLUDE): the FFI handlers, for whatever runs XLA: TensorFlow, by its adapter, and
# JAX. INCLUDE is a folder that holds xla/ffi/api/ffi.h; nothing but its headers is needed.
function(add_xla_handlers include)
  file(GLOB sources CONFIGURE_DEPENDS adapters/xla/*.cc)
  if(NOT TF_DEFORMABLE_CUDA)
    list(FILTER sources EXCLUDE REGEX "_cuda_handler\\.cc$")
  endif()
  add_library(tf_deformable_xla SHARED ${sources} kernels/base/older_libstdcxx.cc)
  target_include_directories(tf_deformable_xla SYSTEM PRIVATE ${include})
  target_link_libraries(tf_deformable_xla PRIVATE tf_deformable_adapters tf_deformable_kernels)
  target_link_options(tf_deformable_xla PRIVATE
    LINKER:--version-script,${PROJECT_SOURCE_DIR}/cmake/xla.map)
  # The version is part of its name for the reason that holds for the kernels.
  set_target_properties(tf_deformable_xla PROPERTIES
    OUTPUT_NAME tf_deformable_xla-${TF_DEFORMABLE_VERSION}
    LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/xla.map)
endfunction()
