//! The shape of a convolution.

/// Shape of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between outputs, in pixels.
    pub stride: usize,
    /// Zeros around the image, in pixels.
    pub padding: usize,
}

impl Conv2dConfig {
    /// 1 x 1.
    pub const POINTWISE: Self = Self { kernel: 1, stride: 1, padding: 0 };
    /// 3 x 3, the image keeps its size.
    pub const SAME_3X3: Self = Self { kernel: 3, stride: 1, padding: 1 };
}
