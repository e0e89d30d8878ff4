// Entry points of the operators, as ops.Custom(func_type="aot") calls them.
#include "batch_norm_operators.h"
#include "depthwise_operators.h"
#include "image_operators.h"
#include "inference_operators.h"
#include "mbconv_operators.h"

#define SPNAS_OPERATOR(name, ...)                                                                           \
  extern "C" __attribute__((visibility("default"))) int name(int count, void **params, int *ndims,          \
                                                             int64_t **shapes, const char **dtypes, void *, \
                                                             void *) {                                      \
    using namespace spnas;                                                                                  \
    const Call call{count, params, ndims, shapes, dtypes};                                                  \
    return guarded([&] { return __VA_ARGS__; });                                                            \
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
SPNAS_OPERATOR(MBConvCoreTrain1, core_train(call, 1))
SPNAS_OPERATOR(MBConvCoreTrain2, core_train(call, 2))
SPNAS_OPERATOR(MBConvCoreInfer1, core_infer(call, 1))
SPNAS_OPERATOR(MBConvCoreInfer2, core_infer(call, 2))
SPNAS_OPERATOR(MBConvCoreTrainBackward1, core_backward<true>(call, 1))
SPNAS_OPERATOR(MBConvCoreTrainBackward2, core_backward<true>(call, 2))
SPNAS_OPERATOR(MBConvCoreInferBackward1, core_backward<false>(call, 1))
SPNAS_OPERATOR(MBConvCoreInferBackward2, core_backward<false>(call, 2))
SPNAS_OPERATOR(ImageForward1, image_forward(call, 1))
SPNAS_OPERATOR(ImageForward2, image_forward(call, 2))
SPNAS_OPERATOR(ImageBackward1, image_backward(call, 1))
SPNAS_OPERATOR(ImageBackward2, image_backward(call, 2))
SPNAS_OPERATOR(PointwiseRelu, pointwise_relu(call))
SPNAS_OPERATOR(ConvRelu1, conv_relu(call, 1))
SPNAS_OPERATOR(ConvRelu2, conv_relu(call, 2))
SPNAS_OPERATOR(MBConv1, mbconv(call, 1, false))
SPNAS_OPERATOR(MBConv2, mbconv(call, 2, false))
SPNAS_OPERATOR(MBConvResidual, mbconv(call, 1, true))
