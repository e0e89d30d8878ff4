// Single layers and pairs of them, with channels first.
#include "batch_norm_operators.h"
#include "block_core_operators.h"
#include "depthwise_operators.h"
#include "entry.h"
#include "folded_operators.h"
#include "image_conv_operators.h"
#include "pointwise_operators.h"

namespace spnas {

// Template arguments: what follows the last normalisation, and whose statistics it uses.
constexpr bool kLinear = false, kRelu = true;
constexpr bool kMoving = false, kBatch = true;

}  // namespace spnas

SPNAS_OPERATOR(DepthwiseForward1, depthwise_forward(call, 1))
SPNAS_OPERATOR(DepthwiseForward2, depthwise_forward(call, 2))
SPNAS_OPERATOR(DepthwiseBackward1, depthwise_backward(call, 1))
SPNAS_OPERATOR(DepthwiseBackward2, depthwise_backward(call, 2))
SPNAS_OPERATOR(NormTrain, norm_train<kLinear>(call))
SPNAS_OPERATOR(NormReluTrain, norm_train<kRelu>(call))
SPNAS_OPERATOR(NormInfer, norm_infer<kLinear>(call))
SPNAS_OPERATOR(NormReluInfer, norm_infer<kRelu>(call))
SPNAS_OPERATOR(NormTrainBackward, norm_backward<kLinear, kBatch>(call))
SPNAS_OPERATOR(NormReluTrainBackward, norm_backward<kRelu, kBatch>(call))
SPNAS_OPERATOR(NormInferBackward, norm_backward<kLinear, kMoving>(call))
SPNAS_OPERATOR(NormReluInferBackward, norm_backward<kRelu, kMoving>(call))
SPNAS_OPERATOR(CoreTrain1, core_train<kLinear>(call, 1))
SPNAS_OPERATOR(CoreTrain2, core_train<kLinear>(call, 2))
SPNAS_OPERATOR(CoreInfer1, core_infer<kLinear>(call, 1))
SPNAS_OPERATOR(CoreInfer2, core_infer<kLinear>(call, 2))
SPNAS_OPERATOR(CoreTrainBackward1, core_backward<kLinear, kBatch>(call, 1))
SPNAS_OPERATOR(CoreTrainBackward2, core_backward<kLinear, kBatch>(call, 2))
SPNAS_OPERATOR(CoreInferBackward1, core_backward<kLinear, kMoving>(call, 1))
SPNAS_OPERATOR(CoreInferBackward2, core_backward<kLinear, kMoving>(call, 2))
SPNAS_OPERATOR(CoreReluTrain1, core_train<kRelu>(call, 1))
SPNAS_OPERATOR(CoreReluTrain2, core_train<kRelu>(call, 2))
SPNAS_OPERATOR(CoreReluInfer1, core_infer<kRelu>(call, 1))
SPNAS_OPERATOR(CoreReluInfer2, core_infer<kRelu>(call, 2))
SPNAS_OPERATOR(CoreReluTrainBackward1, core_backward<kRelu, kBatch>(call, 1))
SPNAS_OPERATOR(CoreReluTrainBackward2, core_backward<kRelu, kBatch>(call, 2))
SPNAS_OPERATOR(CoreReluInferBackward1, core_backward<kRelu, kMoving>(call, 1))
SPNAS_OPERATOR(CoreReluInferBackward2, core_backward<kRelu, kMoving>(call, 2))
SPNAS_OPERATOR(ImageForward1, image_forward(call, 1))
SPNAS_OPERATOR(ImageForward2, image_forward(call, 2))
SPNAS_OPERATOR(ImageBackward1, image_backward(call, 1))
SPNAS_OPERATOR(ImageBackward2, image_backward(call, 2))
SPNAS_OPERATOR(PointwiseForward, pointwise_forward(call))
SPNAS_OPERATOR(PointwiseBackward, pointwise_backward(call))
SPNAS_OPERATOR(PointwiseRelu, pointwise_relu(call))
SPNAS_OPERATOR(ConvRelu1, conv_relu(call, 1))
SPNAS_OPERATOR(ConvRelu2, conv_relu(call, 2))
