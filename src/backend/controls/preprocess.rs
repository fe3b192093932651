//! What is done to a picture before a control network looks at it.

use image::{GrayImage, RgbImage, imageops};

use crate::common::Preprocess;

/// Thresholds of Canny's gradients, of the scale that `imageproc` has: about those of A1111 and `ComfyUI`, 100 and 200, for pictures that are
/// not blurred first.
const CANNY: (f32, f32) = (40.0, 80.0);
/// The factor by which `tile` loses resolution: `ComfyUI`'s preprocessor halves it three times.
const TILE: u32 = 8;

/// The picture that the network looks at.
pub(super) fn preprocess(picture: &RgbImage, preprocess: Preprocess) -> RgbImage {
    match preprocess {
        Preprocess::None => picture.clone(),
        Preprocess::Canny => {
            let grey: GrayImage = imageops::grayscale(picture);
            let edges = imageproc::edges::canny(&grey, CANNY.0, CANNY.1);
            RgbImage::from_fn(picture.width(), picture.height(), |x, y| [edges.get_pixel(x, y).0[0]; 3].into())
        }
        Preprocess::Invert => {
            let mut inverted = picture.clone();
            imageops::invert(&mut inverted);
            inverted
        }
        Preprocess::Tile => {
            let (width, height) = picture.dimensions();
            let small = imageops::resize(picture, (width / TILE).max(1), (height / TILE).max(1), imageops::FilterType::Triangle);
            imageops::resize(&small, width, height, imageops::FilterType::CatmullRom)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bright disc on a dark ground.
    fn disc() -> RgbImage {
        RgbImage::from_fn(96, 64, |x, y| {
            let is_inside = (f64::from(x) - 40.0).powi(2) + (f64::from(y) - 30.0).powi(2) < 400.0;
            if is_inside { [230, 120, 30] } else { [20, 30, 60] }.into()
        })
    }

    #[test]
    fn edges_are_white_and_lie_where_the_picture_changes() {
        let edges = preprocess(&disc(), Preprocess::Canny);
        let white: Vec<(u32, u32)> = edges.enumerate_pixels().filter(|(.., pixel)| pixel.0 == [255; 3]).map(|(x, y, _)| (x, y)).collect();
        assert!((80..250).contains(&white.len()), "{} pixels are white", white.len());
        assert!(edges.pixels().all(|pixel| [[0; 3], [255; 3]].contains(&pixel.0)));
        for (x, y) in white {
            let radius = ((f64::from(x) - 40.0).powi(2) + (f64::from(y) - 30.0).powi(2)).sqrt();
            assert!((radius - 20.0).abs() < 3.0, "{x} {y}");
        }
    }

    #[test]
    fn colours_are_inverted_and_details_blurred() {
        let picture = disc();
        assert_eq!(preprocess(&picture, Preprocess::None), picture);
        assert_eq!(preprocess(&picture, Preprocess::Invert).get_pixel(0, 0).0, [235, 225, 195]);
        let lines = RgbImage::from_fn(64, 64, |x, _| [if x % 2 == 0 { 255 } else { 0 }; 3].into());
        let blurred = preprocess(&lines, Preprocess::Tile);
        assert!(blurred.pixels().all(|pixel| (100..156).contains(&pixel.0[0])));
        // Smaller than the loss of resolution, which no size of a request is.
        assert_eq!(preprocess(&RgbImage::new(3, 2), Preprocess::Tile).dimensions(), (3, 2));
    }
}
