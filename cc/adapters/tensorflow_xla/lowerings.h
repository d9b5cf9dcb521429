// Registration of all lowerings, for a platform.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERINGS_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERINGS_H_

#include <initializer_list>

#include "adapters/common/deformable_attention_call.h"
#include "adapters/common/deformable_conv2d_call.h"
#include "adapters/common/roi_pool_call.h"
#include "adapters/tensorflow_xla/lowering.h"

namespace tf_deformable {

// Registers the handler of a call, and the lowering of the operators that are compiled to it.
//
// Not by REGISTER_XLA_OP: TensorFlow does not look at what that registers once the process has
// compiled anything, and a package may be imported later.
template <typename Call, const Platform& platform>
void RegisterLowering(XLA_FFI_Handler* handler, std::initializer_list<const char*> operators) {
  bool is_new = true;
  for (const char* op : operators) {
    is_new &= RegisterKernel<Lowering<Call, platform>>(
        tensorflow::KernelDefBuilder(op).Device(platform.device).Build());
  }
  // Otherwise a copy of this library has registered the handler too.
  if (is_new) RegisterHandler(Call::kHandler, platform.name, handler);
}

// The handlers of a platform, one for each call that all platforms have.
struct Handlers {
  XLA_FFI_Handler* conv2d;
  XLA_FFI_Handler* conv2d_grad;
  XLA_FFI_Handler* roi_pool;
  XLA_FFI_Handler* roi_pool_grad;
  XLA_FFI_Handler* attention;
  XLA_FFI_Handler* attention_grad;
};

// The second operator of a call, where there is one, is that of version 0.1.
template <const Platform& platform>
void RegisterLowerings(const Handlers& handlers) {
  RegisterLowering<deformable_conv2d::ForwardCall, platform>(
      handlers.conv2d, {"TFDeformable>Conv2D", "TFDeformable>DeformableConv2D"});
  RegisterLowering<deformable_conv2d::GradientCall, platform>(
      handlers.conv2d_grad, {"TFDeformable>Conv2DGrad", "TFDeformable>DeformableConv2DGrad"});
  RegisterLowering<roi_pool::ForwardCall, platform>(
      handlers.roi_pool, {"TFDeformable>RoiPool", "TFDeformable>DeformableRoIPool"});
  RegisterLowering<roi_pool::GradientCall, platform>(
      handlers.roi_pool_grad, {"TFDeformable>RoiPoolGrad", "TFDeformable>DeformableRoIPoolGrad"});
  RegisterLowering<deformable_attention::ForwardCall, platform>(
      handlers.attention, {"TFDeformable>MultiScaleDeformableAttention"});
  RegisterLowering<deformable_attention::GradientCall, platform>(
      handlers.attention_grad, {"TFDeformable>MultiScaleDeformableAttentionGrad"});
}

}  // namespace tf_deformable

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_XLA_LOWERINGS_H_
