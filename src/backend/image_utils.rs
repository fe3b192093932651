//! From tensors to pixels and back, and pictures in other sizes.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use image::{GrayImage, ImageBuffer, Luma, Pixel, RgbImage, imageops};

use super::GenerationError;
use crate::common::{Canvas, ImageSize, InputImage, Mask};

/// The first picture of a batch `(batch, 3, height, width)` in [-1, 1] as 8-bit pixels, rounded as diffusers'
/// `VaeImageProcessor.postprocess` rounds them.
///
/// # Errors
/// When a value is NaN or infinite, or every pixel has the same colour.
pub(super) fn to_rgb(picture: &Tensor) -> Result<RgbImage, GenerationError> {
    let values = values(picture)?;
    if !values.iter().all(|value| value.is_finite()) {
        return Err(GenerationError::NotANumber);
    }
    let pixels = pixels(&values);
    if let Some(&[first @ .., _]) = pixels.first_chunk::<4>()
        && pixels.chunks(3).all(|color| color == first)
    {
        return Err(if first == [0; 3] { GenerationError::AllBlack } else { GenerationError::OneColor(first) });
    }
    of_pixels(picture, pixels)
}

/// The same of whatever the values are, for previews.
///
/// # Errors
/// When the device fails.
pub(super) fn to_rough_rgb(picture: &Tensor) -> Result<RgbImage, GenerationError> {
    of_pixels(picture, pixels(&values(picture)?))
}

/// The values of the first picture, pixel by pixel.
fn values(picture: &Tensor) -> candle_core::Result<Vec<f32>> {
    picture.get(0)?.permute((1, 2, 0))?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn pixels(values: &[f32]) -> Vec<u8> {
    values.iter().map(|value| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8).collect()
}

/// The pixels of a tensor as a picture of its size.
fn of_pixels(picture: &Tensor, pixels: Vec<u8>) -> Result<RgbImage, GenerationError> {
    let (_, _, height, width) = picture.dims4()?;
    RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or_else(|| GenerationError::Encoding("a picture must have 3 channels".to_owned()))
}

/// A picture as a tensor `(1, 3, height, width)` in [-1, 1], as diffusers' `VaeImageProcessor.preprocess` makes it.
pub(super) fn to_tensor(picture: &RgbImage, device: &Device) -> candle_core::Result<Tensor> {
    tensor_of(picture, |share| share * 2.0 - 1.0, device)
}

/// A picture as a tensor `(1, 3, height, width)` in [0, 1], as diffusers makes it for ControlNets.
pub(super) fn to_unit_tensor(picture: &RgbImage, device: &Device) -> candle_core::Result<Tensor> {
    tensor_of(picture, |share| share, device)
}

fn tensor_of(picture: &RgbImage, number: impl Fn(f32) -> f32, device: &Device) -> candle_core::Result<Tensor> {
    let (width, height) = picture.dimensions();
    let values: Vec<f32> = picture.as_raw().iter().map(|value| number(f32::from(*value) / 255.0)).collect();
    Tensor::from_vec(values, (1, height as usize, width as usize, 3), device)?.permute((0, 3, 1, 2))?.contiguous()
}

/// Every `stride`th pixel of a mask along each side as a tensor `(1, 1, height / stride, width / stride)`: 1 where a picture is
/// repainted, 0 where it is kept.
pub(super) fn mask_to_tensor(mask: &GrayImage, stride: usize, device: &Device) -> candle_core::Result<Tensor> {
    let (width, height) = (mask.width() as usize / stride, mask.height() as usize / stride);
    let pixels = (0..height).flat_map(|y| (0..width).map(move |x| mask.get_pixel((x * stride) as u32, (y * stride) as u32)));
    Tensor::from_vec(pixels.map(|pixel| f32::from(u8::from(is_new(*pixel)))).collect::<Vec<_>>(), (1, 1, height, width), device)
}

/// Whether a mask marks a pixel as to be repainted.
fn is_new(pixel: Luma<u8>) -> bool {
    pixel.0[0] > 127
}

/// A canvas with a finished picture laid into it.
pub(super) fn lay_into(picture: &RgbImage, canvas: &Canvas) -> RgbImage {
    let Canvas { picture: around, mask, part } = canvas;
    let drawn = stretch(picture, (part.width, part.height));
    let mut whole = around.clone();
    for (x, y, drawn) in drawn.enumerate_pixels() {
        let (x, y) = (part.x + x, part.y + y);
        let share = u32::from(mask.get_pixel(x, y).0[0]);
        for (old, new) in whole.get_pixel_mut(x, y).0.iter_mut().zip(drawn.0) {
            *old = ((u32::from(*old) * (255 - share) + u32::from(new) * share + 127) / 255) as u8;
        }
    }
    whole
}

/// A picture scaled to a size, whatever its proportions.
pub(super) fn stretch<P>(picture: &ImageBuffer<P, Vec<u8>>, (width, height): (u32, u32)) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    if picture.dimensions() == (width, height) {
        return picture.clone();
    }
    imageops::resize(picture, width, height, imageops::FilterType::Lanczos3)
}

/// Copies the part of `kept` that a mask keeps over a picture.
pub(super) fn lay_over(picture: &mut RgbImage, kept: &RgbImage, mask: &Mask) {
    for ((pixel, kept), mask) in picture.pixels_mut().zip(kept.pixels()).zip(mask.pixels.pixels()) {
        if !is_new(*mask) {
            *pixel = *kept;
        }
    }
}

/// The middle of a picture in the proportions of `size`, scaled to it. A mask is first stretched over the picture of size `of` that it
/// belongs to.
pub(super) fn cut<P>(picture: &ImageBuffer<P, Vec<u8>>, of: (u32, u32), size: ImageSize) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (width, height) = (f64::from(of.0), f64::from(of.1));
    let scale = (width / f64::from(size.width())).min(height / f64::from(size.height()));
    // The share of each side that is left.
    let (across, down) = (f64::from(size.width()) * scale / width, f64::from(size.height()) * scale / height);
    let span = |share: f64, side: u32| {
        let length = ((share * f64::from(side)).round() as u32).clamp(1, side);
        ((side - length) / 2, length)
    };
    let ((x, width), (y, height)) = (span(across, picture.width()), span(down, picture.height()));
    let part = imageops::crop_imm(picture, x, y, width, height);
    if (width, height) == (size.width(), size.height()) {
        return part.to_image();
    }
    imageops::resize(&*part, size.width(), size.height(), imageops::FilterType::Lanczos3)
}

/// A picture in the proportions of `size`: where it is too narrow or too low, its edges are repeated.
pub(super) fn extend<P>(picture: &ImageBuffer<P, Vec<u8>>, size: ImageSize) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let (width, height) = picture.dimensions();
    let proportion = f64::from(size.width()) / f64::from(size.height());
    let across = width.max((f64::from(height) * proportion).round() as u32);
    let down = height.max((f64::from(width) / proportion).round() as u32);
    let (left, above) = ((across - width) / 2, (down - height) / 2);
    ImageBuffer::from_fn(across, down, |x, y| {
        *picture.get_pixel(x.saturating_sub(left).min(width - 1), y.saturating_sub(above).min(height - 1))
    })
}

/// [`cut`] for a mask, whose pixels stay 0 or 255.
pub(super) fn cut_mask(mask: &GrayImage, of: (u32, u32), size: ImageSize) -> GrayImage {
    decided(cut(mask, of, size))
}

/// A mask whose pixels are 0 or 255.
pub(super) fn decided(mut mask: GrayImage) -> GrayImage {
    for pixel in mask.pixels_mut() {
        *pixel = Luma([if is_new(*pixel) { 255 } else { 0 }]);
    }
    mask
}

/// An input picture at the size at which the model draws.
pub(super) fn at_size(input: &InputImage, size: ImageSize) -> Cow<'_, InputImage> {
    let of = input.image.dimensions();
    if of == (size.width(), size.height()) {
        return Cow::Borrowed(input);
    }
    let smaller = |mask: &Mask| Mask { pixels: cut_mask(&mask.pixels, of, size), canvas: None, ..*mask };
    let mask = input.mask.as_ref().map(smaller);
    Cow::Owned(InputImage { image: cut(&input.image, of, size), mask })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn picture(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (1, 3, 1, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn pixels_are_clamped_rounded_and_in_order() {
        let rgb = to_rgb(&picture(&[-1., 1., 0., 2., -3., 0.5])).unwrap();
        assert_eq!(rgb.as_raw(), &[0, 128, 0, 255, 255, 191]);
    }

    #[test]
    fn edges_go_on_where_a_picture_is_extended() {
        let picture = RgbImage::from_fn(4, 4, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let wide = extend(&picture, ImageSize::new(256, 128).unwrap());
        assert_eq!(wide.dimensions(), (8, 4));
        assert_eq!([0, 2, 3, 5, 7].map(|x| wide.get_pixel(x, 1).0), [[0, 1, 0], [0, 1, 0], [1, 1, 0], [3, 1, 0], [3, 1, 0]]);
        let high = extend(&picture, ImageSize::new(64, 128).unwrap());
        assert_eq!((high.dimensions(), high.get_pixel(1, 7).0), ((4, 8), [1, 3, 0]));
        assert_eq!(extend(&picture, ImageSize::new(512, 512).unwrap()), picture);
    }

    #[test]
    fn what_is_no_picture_is_an_error() {
        assert!(matches!(to_rgb(&picture(&[0., 0., 0., f32::NAN, 0., 0.])), Err(GenerationError::NotANumber)));
        assert!(matches!(to_rgb(&picture(&[0., 0., 0., f32::INFINITY, 0., 0.])), Err(GenerationError::NotANumber)));
        assert!(matches!(to_rgb(&picture(&[-1.; 6])), Err(GenerationError::AllBlack)));
        assert_eq!(to_rough_rgb(&picture(&[f32::NAN, 1., -1., f32::INFINITY, 0., 0.])).unwrap().as_raw(), &[0, 0, 128, 255, 255, 128]);
        assert!(matches!(to_rgb(&picture(&[1., 1., 0., 0., -1., -1.])), Err(GenerationError::OneColor([255, 128, 0]))));
    }
}
