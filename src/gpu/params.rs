//! The layout of kernel parameters as plain data, so that a test can hold every struct to the layout of its shader.

/// The type of a value in a kernel's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParamType {
    /// WGSL's `u32`.
    U32,
    /// WGSL's `f32`.
    F32,
    /// Consecutive values of one type.
    Array {
        /// The type of each value.
        of: &'static Self,
        /// How many values there are.
        count: usize,
    },
    /// Named fields.
    Struct(&'static Layout),
}

/// The layout of a struct. Fields named `padding` only fill it up.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The fields in their order.
    pub fields: &'static [Field],
    /// The size of the struct.
    pub bytes: usize,
}

/// A field of a struct.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// The name, the same as in the shader.
    pub name: &'static str,
    /// The offset from the beginning of the struct, in bytes.
    pub offset: usize,
    /// The type.
    pub of: ParamType,
}

/// A type that kernel parameters consist of. The macro `params!` implements it for structs.
pub trait Param {
    /// The layout of the type.
    const TYPE: ParamType;
}

impl Param for u32 {
    const TYPE: ParamType = ParamType::U32;
}

impl Param for f32 {
    const TYPE: ParamType = ParamType::F32;
}

impl<T: Param, const N: usize> Param for [T; N] {
    const TYPE: ParamType = ParamType::Array { of: &T::TYPE, count: N };
}

/// Defines structs of kernel parameters in C's layout, with that layout as data.
macro_rules! params {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident: $type:ty,)*
        }
    )*) => {$(
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)*
        }

        impl $crate::gpu::Param for $name {
            const TYPE: $crate::gpu::ParamType = $crate::gpu::ParamType::Struct(&$crate::gpu::Layout {
                fields: &[$($crate::gpu::Field {
                    name: stringify!($field),
                    offset: core::mem::offset_of!($name, $field),
                    of: <$type as $crate::gpu::Param>::TYPE,
                },)*],
                bytes: size_of::<$name>(),
            });
        }
    )*};
}

pub(crate) use params;
