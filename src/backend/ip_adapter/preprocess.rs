//! From a picture to the pixels that CLIP's image encoder looks at.

use candle_core::{Device, Error, Result, Tensor};
use image::{GenericImageView, RgbImage, imageops, imageops::FilterType};

/// Mean and deviation of each colour in the pictures that CLIP was trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// The longest side, in shortest sides. More of a picture is cut off before it is scaled: a line of a million pixels would take gigabytes.
const MAX_PROPORTION: u32 = 16;
/// Rows that are scaled at a time.
const ROWS: u32 = 64;

/// The pixels `(1, 3, side, side)` of the middle of a picture, whose shortest side is scaled to `side`: transformers' `CLIPImageProcessor`.
///
/// Pillow, which scales there, has weights in fixed point, and here they are in f32: a value that lies halfway between two colours may be
/// rounded to the other one in each of two passes, and the result differs by up to 2 of 255. All else is the same, as is the rounding between
/// the passes, without which colours beside hard edges differ by up to 30.
///
/// # Errors
/// When the picture has no pixels, or the device fails.
pub fn preprocess(picture: &RgbImage, side: usize, device: &Device) -> Result<Tensor> {
    let (width, height) = picture.dimensions();
    let size = u32::try_from(side).ok().filter(|size| *size > 0 && width > 0 && height > 0);
    let size = size.ok_or_else(|| Error::msg(format!("a picture of {width} x {height} pixels cannot be scaled to {side} x {side}")))?;
    let middle = scaled_middle(picture, size);
    let normed = middle.pixels().flat_map(|pixel| (0..3).map(|c| (f32::from(pixel.0[c]) / 255.0 - MEAN[c]) / DEVIATION[c]));
    Tensor::from_vec(normed.collect::<Vec<f32>>(), (1, side, side, 3), device)?.permute((0, 3, 1, 2))?.contiguous()
}

/// The middle of a picture, whose shortest side is scaled to `size`. A picture of no pixels, or of that size, is what it was.
pub(in crate::backend) fn reduce(picture: &RgbImage, size: u32) -> RgbImage {
    let is_empty = size == 0 || picture.width() == 0 || picture.height() == 0;
    if is_empty { picture.clone() } else { scaled_middle(picture, size) }
}

fn scaled_middle(picture: &RgbImage, size: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let most = width.min(height).saturating_mul(MAX_PROPORTION);
    let picture = middle(picture, width.min(most), height.min(most));
    let (width, height) = picture.dimensions();
    if width.min(height) == size {
        return middle(&picture, size, size);
    }
    // As in transformers, the long side is rounded down.
    let scaled = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short)) as u32;
    let (across, down) = if width <= height { (size, scaled(height, width)) } else { (scaled(width, height), size) };
    middle(&scaled_columns(&scaled_rows(&picture, across), down), size, size)
}

/// The first of Pillow's two passes. As there, its result is rounded to 8 bits.
fn scaled_rows(picture: &RgbImage, across: u32) -> RgbImage {
    let (width, height) = picture.dimensions();
    let mut scaled = RgbImage::new(across, height);
    // `resize` takes 16 bytes a pixel: a few rows at a time take little. It leaves columns as they are.
    for start in (0..height).step_by(ROWS as usize) {
        let rows = imageops::crop_imm(picture, 0, start, width, ROWS.min(height - start));
        imageops::replace(&mut scaled, &imageops::resize(&*rows, across, rows.height(), FilterType::CatmullRom), 0, i64::from(start));
    }
    scaled
}

/// The second one.
fn scaled_columns(picture: &RgbImage, down: u32) -> RgbImage {
    imageops::resize(picture, picture.width(), down, FilterType::CatmullRom)
}

fn middle(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    imageops::crop_imm(picture, (picture.width() - width) / 2, (picture.height() - height) / 2, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn values(picture: &RgbImage, side: usize) -> Vec<f32> {
        let pixels = preprocess(picture, side, &Device::Cpu).unwrap();
        assert_eq!(pixels.dims(), [1, 3, side, side]);
        pixels.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_picture_of_the_right_size_is_only_normed() {
        let picture = RgbImage::from_fn(2, 2, |x, y| Rgb([(100 * x) as u8, (200 * y) as u8, 255]));
        let found = values(&picture, 2);
        let normed = |value: f32, c: usize| (value / 255.0 - MEAN[c]) / DEVIATION[c];
        let right = [[0.0, 100.0, 0.0, 100.0], [0.0, 0.0, 200.0, 200.0], [255.0; 4]];
        let right: Vec<f32> = right.iter().enumerate().flat_map(|(c, plane)| plane.map(|value| normed(value, c))).collect();
        assert_eq!(found, right);
    }

    #[test]
    fn the_middle_is_seen_alone() {
        // The outer columns have another colour.
        let picture = RgbImage::from_fn(7, 4, |x, _| Rgb(if (1..5).contains(&x) { [9; 3] } else { [255; 3] }));
        assert_eq!(scaled_middle(&picture, 4), RgbImage::from_pixel(4, 4, Rgb([9; 3])));
    }

    #[test]
    fn pictures_of_any_proportions_take_little_memory() {
        for (width, height) in [(1, 1), (1, 1 << 20), (1 << 20, 1), (3, 1000), (1000, 999)] {
            let picture = RgbImage::from_pixel(width, height, Rgb([10, 20, 30]));
            assert!(scaled_middle(&picture, 56) == RgbImage::from_pixel(56, 56, Rgb([10, 20, 30])), "{width} x {height}");
        }
        preprocess(&RgbImage::new(0, 0), 56, &Device::Cpu).unwrap_err();
        preprocess(&RgbImage::new(4, 4), 0, &Device::Cpu).unwrap_err();
    }
}
