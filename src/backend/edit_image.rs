//! A picture to begin with and its mask, at the size of the result. After A1111's `modules/processing.py` and `modules/masking.py` where
//! the fitting asks for what diffusers has not.

use image::{GrayImage, ImageBuffer, Luma, Pixel, Rgb, RgbImage, Rgba, Rgba32FImage, imageops};

use super::{
    Fitting, MaskFill, MaskRules, Resize,
    image_utils::{cut, decided, stretch},
};
use crate::common::{Canvas, ImageSize, InputImage, Mask, MaskLatents, MaskMeaning, Part};

/// Blurs of the surroundings of a mask, from coarse to fine: standard deviations in pixels, and how often each is laid over those before.
const BLURS: [(f32, usize); 5] = [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2)];

/// A picture of size `of`, or a mask that is stretched over it, at the size of the result.
pub(super) fn fit<P>(picture: &ImageBuffer<P, Vec<u8>>, of: (u32, u32), size: ImageSize, resize: Resize) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    match resize {
        Resize::Crop => cut(picture, of, size),
        Resize::Stretch => stretch(picture, (size.width(), size.height())),
        Resize::Fill => whole(picture, of, size),
    }
}

/// A picture of size `of`, or a mask that is stretched over it, shown whole; its edges are repeated where it leaves room. It is scaled first:
/// of a long line, the room may be a million times as large.
fn whole<P>(picture: &ImageBuffer<P, Vec<u8>>, of: (u32, u32), size: ImageSize) -> ImageBuffer<P, Vec<u8>>
where
    P: Pixel<Subpixel = u8> + 'static,
{
    let scale = (f64::from(size.width()) / f64::from(of.0)).min(f64::from(size.height()) / f64::from(of.1));
    let side = |side: u32, most: u32| ((f64::from(side) * scale).round() as u32).clamp(1, most);
    let (width, height) = (side(of.0, size.width()), side(of.1, size.height()));
    let scaled = stretch(picture, (width, height));
    let (left, above) = ((size.width() - width) / 2, (size.height() - height) / 2);
    ImageBuffer::from_fn(size.width(), size.height(), |x, y| {
        *scaled.get_pixel(x.saturating_sub(left).min(width - 1), y.saturating_sub(above).min(height - 1))
    })
}

/// A picture of which a mask marks a part, in white. None if nothing is marked.
pub(super) fn with_mask(
    picture: RgbImage,
    mut mask: GrayImage,
    meaning: MaskMeaning,
    fitting: Fitting,
    size: ImageSize,
) -> Option<InputImage> {
    let Fitting { resize, mask: MaskRules { is_inverted, blur, fill, margin, .. } } = fitting;
    if is_inverted {
        imageops::invert(&mut mask);
    }
    let of = picture.dimensions();
    if margin.is_some() || blur > 0 {
        mask = stretch(&mask, of);
    }
    if blur > 0 {
        let blurred = imageops::blur(&mask, f32::from(blur));
        // What is smaller than its blur would be gone.
        if marks_any(&blurred) || !marks_any(&mask) {
            mask = blurred;
        }
    }
    let (mut image, pixels, canvas) = if let Some(margin) = margin {
        let part = around(&mask, margin, size)?;
        let drawn = imageops::crop_imm(&picture, part.x, part.y, part.width, part.height).to_image();
        let marked = imageops::crop_imm(&mask, part.x, part.y, part.width, part.height).to_image();
        let of = (part.width, part.height);
        let (image, pixels) = (fit(&drawn, of, size, Resize::Fill), fit(&marked, of, size, Resize::Fill));
        (image, pixels, Some(Canvas { picture, mask, part }))
    } else {
        let (image, pixels) = (fit(&picture, of, size, resize), fit(&mask, of, size, resize));
        let part = Part { x: 0, y: 0, width: size.width(), height: size.height() };
        // Half of a blurred edge is drawn anew, and the other half blends with it.
        let doubled = || GrayImage::from_fn(pixels.width(), pixels.height(), |x, y| Luma([pixels.get_pixel(x, y).0[0].saturating_mul(2)]));
        let canvas = (blur > 0).then(|| Canvas { picture: image.clone(), mask: doubled(), part });
        (image, pixels, canvas)
    };
    let latents = match fill {
        MaskFill::Original => None,
        MaskFill::Surroundings => {
            image = filled(&image, &pixels);
            None
        }
        MaskFill::Noise => Some(MaskLatents::Noise),
        MaskFill::Nothing => Some(MaskLatents::Zeros),
    };
    let pixels = decided(pixels);
    marks_any(&pixels).then_some(InputImage { image, mask: Some(Mask { pixels, meaning, latents, canvas }) })
}

/// Whether a mask marks anything once it is decided.
fn marks_any(mask: &GrayImage) -> bool {
    mask.iter().any(|pixel| *pixel > 127)
}

/// The part of a picture around all that a mask marks, with so many pixels more at each side, in the proportions of `size` as far as the
/// picture goes. None if nothing is marked.
fn around(mask: &GrayImage, margin: u32, size: ImageSize) -> Option<Part> {
    let marked = || mask.enumerate_pixels().filter(|(.., pixel)| pixel.0[0] > 0);
    let span = |first: u32, last: u32, side: u32| (first.saturating_sub(margin), last.saturating_add(margin + 1).min(side));
    let (left, right) = span(marked().map(|(x, ..)| x).min()?, marked().map(|(x, ..)| x).max()?, mask.width());
    let (top, bottom) = span(marked().map(|(_, y, _)| y).min()?, marked().map(|(_, y, _)| y).max()?, mask.height());
    let proportion = f64::from(size.width()) / f64::from(size.height());
    let wanted = (f64::from(bottom - top) * proportion, f64::from(right - left) / proportion);
    let (x, width) = widened((left, right), wanted.0 as u32, mask.width());
    let (y, height) = widened((top, bottom), wanted.1 as u32, mask.height());
    Some(Part { x, y, width, height })
}

/// A span made as long as `wanted` on both sides evenly, if it is shorter, as far as the side goes. As its start and length.
fn widened((first, last): (u32, u32), wanted: u32, side: u32) -> (u32, u32) {
    let length = (last - first).max(wanted).min(side);
    let more = length - (last - first);
    (first.saturating_sub(more / 2).min(side - length), length)
}

/// A picture whose marked part has the colours around it.
fn filled(picture: &RgbImage, mask: &GrayImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    // Colours from 0 to 1, multiplied by how much of the picture is kept.
    let kept = Rgba32FImage::from_fn(width, height, |x, y| {
        let (Rgb([red, green, blue]), share) = (*picture.get_pixel(x, y), 1.0 - f32::from(mask.get_pixel(x, y).0[0]) / 255.0);
        let [red, green, blue] = [red, green, blue].map(|color| f32::from(color) / 255.0 * share);
        Rgba([red, green, blue, share])
    });
    let mut colors = Rgba32FImage::new(width, height);
    let mut lay_over = |layer: &Rgba32FImage| {
        for (under, over) in colors.pixels_mut().zip(layer.pixels()) {
            let rest = 1.0 - over.0[3];
            under.apply2(over, |under, over| over + under * rest);
        }
    };
    for (deviation, times) in BLURS {
        let blurred = imageops::fast_blur(&kept, deviation);
        (0..times).for_each(|_| lay_over(&blurred));
    }
    lay_over(&kept);
    RgbImage::from_fn(width, height, |x, y| {
        let Rgba([red, green, blue, share]) = *colors.get_pixel(x, y);
        // Nothing at all is kept of a picture that is repainted as a whole.
        Rgb([red, green, blue].map(|color| if share > 0.0 { (255.0 * color / share).round().clamp(0.0, 255.0) as u8 } else { 0 }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::image_utils::lay_into;

    /// A gradient without two pixels alike.
    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 90]))
    }

    /// White from `x` and `y` on.
    fn mask(of: (u32, u32), (x, y, width, height): (u32, u32, u32, u32)) -> GrayImage {
        let is_new = move |at: u32, first: u32, length: u32| (first..first + length).contains(&at);
        GrayImage::from_fn(of.0, of.1, move |i, j| Luma([if is_new(i, x, width) && is_new(j, y, height) { 255 } else { 0 }]))
    }

    fn size(width: u32, height: u32) -> ImageSize {
        ImageSize::new(width, height).unwrap()
    }

    fn rules(mask: MaskRules) -> Fitting {
        Fitting { resize: Resize::Stretch, mask }
    }

    fn white(picture: RgbImage, mask: GrayImage, fitting: Fitting, size: ImageSize) -> InputImage {
        with_mask(picture, mask, MaskMeaning::White, fitting, size).unwrap()
    }

    #[test]
    fn the_part_around_a_mask_has_the_proportions_of_the_result() {
        let part = |marked, margin, width, height| around(&mask((200, 100), marked), margin, size(width, height)).unwrap();
        assert_eq!(part((80, 40, 20, 20), 10, 64, 64), Part { x: 70, y: 30, width: 40, height: 40 });
        assert_eq!(part((80, 40, 20, 20), 0, 128, 64), Part { x: 70, y: 40, width: 40, height: 20 });
        assert_eq!(part((80, 40, 20, 20), 0, 64, 128), Part { x: 80, y: 30, width: 20, height: 40 });
        assert_eq!(part((0, 0, 10, 20), 4, 64, 64), Part { x: 0, y: 0, width: 24, height: 24 }, "not beyond the corner");
        assert_eq!(part((190, 90, 10, 10), 0, 128, 64), Part { x: 180, y: 90, width: 20, height: 10 });
        assert_eq!(part((0, 0, 200, 20), 0, 64, 64), Part { x: 0, y: 0, width: 200, height: 100 }, "as far as the picture goes");
        assert_eq!(around(&GrayImage::new(8, 8), 9, size(64, 64)), None);
    }

    #[test]
    fn a_part_that_is_drawn_alone_is_laid_into_the_picture_where_the_mask_is() {
        let rules = rules(MaskRules { margin: Some(8), ..MaskRules::default() });
        let around = picture(200, 120);
        let input = white(around.clone(), mask((200, 120), (100, 50, 16, 16)), rules, size(128, 128));
        assert_eq!((input.image.dimensions(), input.image.get_pixel(64, 64).0[2]), ((128, 128), 90));
        let canvas = input.mask.unwrap().canvas.unwrap();
        assert_eq!(canvas.part, Part { x: 92, y: 42, width: 32, height: 32 });
        let whole = lay_into(&RgbImage::from_pixel(128, 128, Rgb([1, 2, 3])), &canvas);
        for (x, y, pixel) in whole.enumerate_pixels() {
            let is_new = (100..116).contains(&x) && (50..66).contains(&y);
            assert_eq!(*pixel, if is_new { Rgb([1, 2, 3]) } else { *around.get_pixel(x, y) }, "{x} {y}");
        }
    }

    #[test]
    fn edges_of_a_blurred_mask_blend_and_all_else_stays() {
        let rules = rules(MaskRules { blur: 4, ..MaskRules::default() });
        let input = white(picture(128, 64), mask((128, 64), (64, 0, 64, 64)), rules, size(128, 64));
        let mask = input.mask.unwrap();
        assert!(mask.pixels.pixels().all(|pixel| [0, 255].contains(&pixel.0[0])), "latents are new or not");
        let whole = lay_into(&RgbImage::new(128, 64), &mask.canvas.unwrap());
        assert_eq!([0, 40, 70, 127].map(|x| whole.get_pixel(x, 9).0), [[0, 9, 90], [40, 9, 90], [0; 3], [0; 3]]);
        let blues: Vec<u8> = (44..72).map(|x| whole.get_pixel(x, 9).0[2]).collect();
        assert!(blues.is_sorted_by(|a, b| a >= b) && blues.iter().filter(|blue| (1..90).contains(*blue)).count() > 5, "{blues:?}");
    }

    #[test]
    fn what_is_filled_has_the_colours_around_it() {
        let halves = RgbImage::from_fn(128, 128, |x, _| if x < 64 { Rgb([200, 0, 0]) } else { Rgb([0, 0, 200]) });
        let filled = filled(&halves, &mask((128, 128), (32, 32, 64, 64)));
        assert_eq!((filled.get_pixel(5, 5), filled.get_pixel(120, 64)), (halves.get_pixel(5, 5), halves.get_pixel(120, 64)));
        let [left, right] = [filled.get_pixel(36, 64).0, filled.get_pixel(92, 64).0];
        assert!(left[0] > 150 && left[2] < 50 && right[0] < 50 && right[2] > 150, "{left:?} {right:?}");
        let rules = |fill| rules(MaskRules { fill, ..MaskRules::default() });
        let input = |fill| white(halves.clone(), mask((128, 128), (32, 32, 64, 64)), rules(fill), size(128, 128));
        assert_eq!(input(MaskFill::Surroundings).image, filled);
        for (fill, latents) in
            [(MaskFill::Original, None), (MaskFill::Noise, Some(MaskLatents::Noise)), (MaskFill::Nothing, Some(MaskLatents::Zeros))]
        {
            assert_eq!((&input(fill).image, input(fill).mask.unwrap().latents), (&halves, latents));
        }
    }

    #[test]
    fn pictures_are_stretched_cut_or_shown_whole() {
        let wide = RgbImage::from_fn(128, 64, |x, _| if x < 16 { Rgb([255, 0, 0]) } else { Rgb([0, 255, 0]) });
        let fitted = |resize| fit(&wide, (128, 64), size(64, 64), resize);
        let reds = |picture: &RgbImage| (0..64).filter(|x| picture.get_pixel(*x, 32).0[0] > 127).count();
        assert_eq!([Resize::Stretch, Resize::Crop, Resize::Fill].map(|resize| reds(&fitted(resize))), [8, 0, 8]);
        assert_eq!(fitted(Resize::Fill).dimensions(), (64, 64));
        let line = RgbImage::from_fn(300_000, 1, |x, _| Rgb([if x < 150_000 { 255 } else { 0 }, 9, 9]));
        let filled = fit(&line, (300_000, 1), size(64, 4096), Resize::Fill);
        assert_eq!([(9, 0), (9, 4095), (60, 2000)].map(|(x, y)| filled.get_pixel(x, y).0[0]), [255, 255, 0], "a line fills a page");
        let dot = mask((128, 64), (60, 30, 3, 3));
        let dot = white(wide.clone(), dot, rules(MaskRules { blur: 40, ..MaskRules::default() }), size(128, 64)).mask.unwrap();
        assert_eq!(dot.pixels.get_pixel(61, 31).0, [255], "what is smaller than its blur is not lost");
        let inverted = rules(MaskRules { is_inverted: true, ..MaskRules::default() });
        let pixels = white(wide, mask((128, 64), (0, 0, 64, 64)), inverted, size(128, 64)).mask.unwrap().pixels;
        assert_eq!([pixels.get_pixel(9, 9).0, pixels.get_pixel(99, 9).0], [[0], [255]]);
    }
}
