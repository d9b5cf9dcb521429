// Attributes that several operators have, as calls in the chain that REGISTER_OP begins. Macros:
// no function can be a link of that chain.
#ifndef TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OP_ATTRIBUTES_H_
#define TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OP_ATTRIBUTES_H_

// Of convolutions.
#define TF_DEFORMABLE_WINDOW_ATTRIBUTES()             \
  Attr("strides: list(int)")                          \
      .Attr("dilations: list(int)")                   \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}") \
      .Attr("explicit_paddings: list(int) = []")

// Of RoI pooling.
#define TF_DEFORMABLE_BINS_ATTRIBUTES()   \
  Attr("Tboxes: {float, double}")         \
      .Attr("num_offsets: int >= 0 = 0")  \
      .Attr("num_masks: int >= 0 = 0")    \
      .Attr("output_size: list(int)")     \
      .Attr("group_size: int = 1")        \
      .Attr("spatial_scale: float = 1.0") \
      .Attr("samples_per_bin: int = 4")   \
      .Attr("gamma: float = 0.1")         \
      .Attr("aligned: bool = false")

// Of attention.
#define TF_DEFORMABLE_ATTENTION_ATTRIBUTES()                        \
  Attr("Tsampling: {half, bfloat16, float, double}")                \
      .Attr("coordinates: {'normalized', 'pixels'} = 'normalized'") \
      .Attr("num_points: list(int) = []")

#endif  // TF_DEFORMABLE_CC_ADAPTERS_TENSORFLOW_OP_ATTRIBUTES_H_
