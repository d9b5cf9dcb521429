// The handlers that the library exports, a function each; `XLA_FFI_Handler` in XLA's C API.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLERS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLERS_H_

#include <cstddef>

#include "xla/ffi/api/c_api.h"

extern "C" {

XLA_FFI_Error* tf_deformable_conv2d_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_conv2d_grad_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_conv2d_branch_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_conv2d_branch_grad_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_roi_pool_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_roi_pool_grad_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_attention_cpu(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_attention_grad_cpu(XLA_FFI_CallFrame*);

// Only in a library with CUDA kernels.
XLA_FFI_Error* tf_deformable_conv2d_cuda(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_conv2d_grad_cuda(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_roi_pool_cuda(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_roi_pool_grad_cuda(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_attention_cuda(XLA_FFI_CallFrame*);
XLA_FFI_Error* tf_deformable_attention_grad_cuda(XLA_FFI_CallFrame*);

}  // extern "C"

#endif  // TF_DEFORMABLE_CC_ADAPTERS_XLA_HANDLERS_H_
