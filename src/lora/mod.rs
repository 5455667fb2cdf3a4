//! LoRA
