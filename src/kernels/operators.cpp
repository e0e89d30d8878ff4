// Entry points of the operators, as ops.Custom(func_type="aot") calls them.
#include "batch_norm_operators.h"
#include "depthwise_operators.h"
#include "image_operators.h"
#include "inference_operators.h"
#include "mbconv_operators.h"
#include "pointwise_operators.h"

#define SPNAS_OPERATOR(name, ...)                                                          \
  extern "C" __attribute__((visibility("default"))) int name(                              \
      int count, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *, \
      void *) {                                                                            \
    using namespace spnas;                                                                 \
    const Call call{count, params, ndims, shapes, dtypes};                                 \
    return guarded([&] { return __VA_ARGS__; });                                           \
  }

SPNAS_OPERATOR(DepthwiseForward1, depthwise_forward(call, 1))
SPNAS_OPERATOR(DepthwiseForward2, depthwise_forward(call, 2))
SPNAS_OPERATOR(DepthwiseBackward1, depthwise_backward(call, 1))
SPNAS_OPERATOR(DepthwiseBackward2, depthwise_backward(call, 2))
SPNAS_OPERATOR(NormTrain, norm_train<false>(call))
SPNAS_OPERATOR(NormReluTrain, norm_train<true>(call))
SPNAS_OPERATOR(NormInfer, norm_infer<false>(call))
SPNAS_OPERATOR(NormReluInfer, norm_infer<true>(call))
SPNAS_OPERATOR(NormTrainBackward, norm_backward<false, true>(call))
SPNAS_OPERATOR(NormReluTrainBackward, norm_backward<true, true>(call))
SPNAS_OPERATOR(NormInferBackward, norm_backward<false, false>(call))
SPNAS_OPERATOR(NormReluInferBackward, norm_backward<true, false>(call))
SPNAS_OPERATOR(CoreTrain1, core_train<false>(call, 1))
SPNAS_OPERATOR(CoreTrain2, core_train<false>(call, 2))
SPNAS_OPERATOR(CoreInfer1, core_infer<false>(call, 1))
SPNAS_OPERATOR(CoreInfer2, core_infer<false>(call, 2))
SPNAS_OPERATOR(CoreTrainBackward1, core_backward<false, true>(call, 1))
SPNAS_OPERATOR(CoreTrainBackward2, core_backward<false, true>(call, 2))
SPNAS_OPERATOR(CoreInferBackward1, core_backward<false, false>(call, 1))
SPNAS_OPERATOR(CoreInferBackward2, core_backward<false, false>(call, 2))
SPNAS_OPERATOR(CoreReluTrain1, core_train<true>(call, 1))
SPNAS_OPERATOR(CoreReluTrain2, core_train<true>(call, 2))
SPNAS_OPERATOR(CoreReluInfer1, core_infer<true>(call, 1))
SPNAS_OPERATOR(CoreReluInfer2, core_infer<true>(call, 2))
SPNAS_OPERATOR(CoreReluTrainBackward1, core_backward<true, true>(call, 1))
SPNAS_OPERATOR(CoreReluTrainBackward2, core_backward<true, true>(call, 2))
SPNAS_OPERATOR(CoreReluInferBackward1, core_backward<true, false>(call, 1))
SPNAS_OPERATOR(CoreReluInferBackward2, core_backward<true, false>(call, 2))
SPNAS_OPERATOR(ImageForward1, image_forward(call, 1))
SPNAS_OPERATOR(ImageForward2, image_forward(call, 2))
SPNAS_OPERATOR(ImageBackward1, image_backward(call, 1))
SPNAS_OPERATOR(ImageBackward2, image_backward(call, 2))
SPNAS_OPERATOR(PointwiseForward, pointwise_forward(call))
SPNAS_OPERATOR(PointwiseBackward, pointwise_backward(call))
SPNAS_OPERATOR(PointwiseRelu, pointwise_relu(call))
SPNAS_OPERATOR(ConvRelu1, conv_relu(call, 1))
SPNAS_OPERATOR(ConvRelu2, conv_relu(call, 2))
SPNAS_OPERATOR(MBConv1, mbconv(call, 1, false))
SPNAS_OPERATOR(MBConv2, mbconv(call, 2, false))
SPNAS_OPERATOR(MBConvResidual, mbconv(call, 1, true))
