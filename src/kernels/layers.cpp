// Single layers and pairs of them, with channels first.
#include "batch_norm_operators.h"
#include "block_core_operators.h"
#include "depthwise_operators.h"
#include "entry.h"
#include "folded_operators.h"
#include "image_conv_operators.h"
#include "pointwise_operators.h"

namespace spnas {

// Template argument: what follows the normalisation.
constexpr bool kLinear = false, kRelu = true;

}  // namespace spnas

SPNAS_OPERATOR(DepthwiseForward1, depthwise_forward(call, 1))
SPNAS_OPERATOR(DepthwiseForward2, depthwise_forward(call, 2))
SPNAS_OPERATOR(DepthwiseBackward1, depthwise_backward(call, 1))
SPNAS_OPERATOR(DepthwiseBackward2, depthwise_backward(call, 2))
SPNAS_OPERATOR(NormTrain, norm_train<kLinear>(call))
SPNAS_OPERATOR(NormReluTrain, norm_train<kRelu>(call))
SPNAS_OPERATOR(NormInfer, norm_infer<kLinear>(call))
SPNAS_OPERATOR(NormReluInfer, norm_infer<kRelu>(call))
SPNAS_OPERATOR(NormTrainBackward, norm_backward<kLinear>(call))
SPNAS_OPERATOR(NormReluTrainBackward, norm_backward<kRelu>(call))
SPNAS_OPERATOR(CoreTrain1, core_train(call, 1))
SPNAS_OPERATOR(CoreTrain2, core_train(call, 2))
SPNAS_OPERATOR(CoreInfer1, core_infer(call, 1))
SPNAS_OPERATOR(CoreInfer2, core_infer(call, 2))
SPNAS_OPERATOR(CoreTrainBackward1, core_backward(call, 1))
SPNAS_OPERATOR(CoreTrainBackward2, core_backward(call, 2))
SPNAS_OPERATOR(ImageForward1, image_forward(call, 1))
SPNAS_OPERATOR(ImageForward2, image_forward(call, 2))
SPNAS_OPERATOR(ImageBackward1, image_backward(call, 1))
SPNAS_OPERATOR(ImageBackward2, image_backward(call, 2))
SPNAS_OPERATOR(PointwiseForward, pointwise_forward(call))
SPNAS_OPERATOR(PointwiseBackward, pointwise_backward(call))
SPNAS_OPERATOR(PointwiseRelu, pointwise_relu(call))
SPNAS_OPERATOR(ConvRelu1, conv_relu(call, 1))
SPNAS_OPERATOR(ConvRelu2, conv_relu(call, 2))
