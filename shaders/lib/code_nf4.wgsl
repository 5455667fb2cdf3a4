// The NF4 code (Dettmers et al. 2023, QLoRA): quantiles of a normal distribution, exact zero included.

const CODE_0: f32 = -1.0;
const CODE_1: f32 = -0.6961928;
const CODE_2: f32 = -0.52507305;
const CODE_3: f32 = -0.3949175;
const CODE_4: f32 = -0.28444138;
const CODE_5: f32 = -0.18477343;
const CODE_6: f32 = -0.091050036;
const CODE_7: f32 = 0.0;
const CODE_8: f32 = 0.0795803;
const CODE_9: f32 = 0.1609302;
const CODE_10: f32 = 0.2461123;
const CODE_11: f32 = 0.33791524;
const CODE_12: f32 = 0.44070983;
const CODE_13: f32 = 0.562617;
const CODE_14: f32 = 0.72295684;
const CODE_15: f32 = 1.0;
