// The FP4 code of bitsandbytes: bit 3 is the sign, the rest picks one of eight magnitudes.

const CODE_0: f32 = 0.0;
const CODE_1: f32 = 0.0052083335;
const CODE_2: f32 = 0.6666667;
const CODE_3: f32 = 1.0;
const CODE_4: f32 = 0.33333334;
const CODE_5: f32 = 0.5;
const CODE_6: f32 = 0.16666667;
const CODE_7: f32 = 0.25;
const CODE_8: f32 = 0.0;
const CODE_9: f32 = -0.0052083335;
const CODE_10: f32 = -0.6666667;
const CODE_11: f32 = -1.0;
const CODE_12: f32 = -0.33333334;
const CODE_13: f32 = -0.5;
const CODE_14: f32 = -0.16666667;
const CODE_15: f32 = -0.25;
