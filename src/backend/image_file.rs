//! Input pictures as files. A header is checked before anything is decoded.

use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, metadata::Orientation};

use super::{
    Fitting, GenerationError, edit_image, image_utils,
    ip_adapter::reduce,
    picture_decoder::{self, Broken},
};
use crate::{
    common::{ImageSize, InputImage, InputImages, InvalidValue, MaskMeaning},
    ops,
};

/// The most pixels of an input picture: 6000 x 5592, about 100 MB once decoded.
pub const MAX_INPUT_PIXELS: u64 = 1 << 25;

/// The accepted formats, for error messages.
const ACCEPTED: &str = "a PNG, JPEG or WebP file";

/// A picture as a file, whose header is valid.
#[derive(Debug)]
pub struct ImageFile {
    /// The request's name for it.
    name: &'static str,
    bytes: Vec<u8>,
    format: ImageFormat,
    orientation: Orientation,
    /// Width and height after the orientation is applied.
    size: (u32, u32),
}

/// The files of a request's pictures.
#[derive(Debug, Default)]
pub struct InputFiles {
    /// Those of the picture to begin with, if there is one.
    pub init: Option<InitFiles>,
    /// Those that control networks look at.
    pub controls: Vec<ImageFile>,
    /// Those that the denoiser looks at beside the text.
    pub references: Vec<ImageFile>,
}

/// The files of a picture to begin with.
#[derive(Debug)]
pub struct InitFiles {
    /// The picture.
    pub image: ImageFile,
    /// The mask, which marks the part to be repainted.
    pub mask: Option<ImageFile>,
    /// How both are used.
    pub fitting: Fitting,
}

impl ImageFile {
    /// Reads the header. Errors call the picture `name`.
    ///
    /// # Errors
    /// When it is no picture, has another format, or is too large.
    pub fn open(name: &'static str, bytes: Vec<u8>) -> Result<Self, InvalidValue> {
        if bytes.is_empty() {
            return Err(InvalidValue::new(name, "an empty file", ACCEPTED));
        }
        let format = match image::guess_format(&bytes) {
            Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => format,
            Ok(other) => return Err(InvalidValue::new(name, other.to_mime_type(), ACCEPTED)),
            Err(_) => return Err(InvalidValue::new(name, format_args!("{} bytes of something else", bytes.len()), ACCEPTED)),
        };
        let picture_decoder::Header { size, orientation } =
            picture_decoder::header(&bytes, format).map_err(|error| broken(name, &error))?;
        let (width, height) = size;
        if u64::from(width) * u64::from(height) > MAX_INPUT_PIXELS {
            let allowed = format!("a picture of at most {MAX_INPUT_PIXELS} pixels");
            return Err(InvalidValue::new(name, format_args!("{width}x{height}"), allowed));
        }
        let size = if is_on_its_side(orientation) { (height, width) } else { size };
        Ok(Self { name, bytes, format, orientation, size })
    }

    /// Width and height in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// The bytes, and their format.
    pub(super) fn contents(&self) -> (&[u8], ImageFormat) {
        (&self.bytes, self.format)
    }

    /// Whether all of the pixels can be read.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.decode().is_ok()
    }

    /// The pixels as they are, what is transparent on white.
    ///
    /// # Errors
    /// When the file is broken, or there is no memory for the pixels.
    pub fn pixels(&self) -> Result<RgbImage, GenerationError> {
        let opaque = || Ok::<_, InvalidValue>(flatten(&self.decode()?));
        Ok(ops::with_room(picture_decoder::room_for(&self.bytes, self.size, self.size), opaque)??)
    }

    /// The pixels, made opaque, cut and scaled to a size. The memory is asked for first: a decoder without memory ends the process.
    fn decode_to(&self, size: ImageSize, opaque: impl Fn(&DynamicImage) -> RgbImage) -> Result<RgbImage, GenerationError> {
        let cut = || Ok::<_, InvalidValue>(image_utils::cut(&opaque(&self.decode()?), self.size, size));
        Ok(ops::with_room(self.room(size), cut)??)
    }

    /// The most memory that it takes to decode it and to scale it to a size.
    fn room(&self, size: ImageSize) -> u64 {
        picture_decoder::room_for(&self.bytes, self.size, (size.width(), size.height()))
    }

    fn decode(&self) -> Result<DynamicImage, InvalidValue> {
        let mut picture = picture_decoder::decode(&self.bytes, self.format).map_err(|error| broken(self.name, &error))?;
        picture.apply_orientation(self.orientation);
        Ok(picture)
    }
}

fn broken(name: &'static str, error: &Broken) -> InvalidValue {
    InvalidValue::new(name, format_args!("one that is broken ({error})"), ACCEPTED)
}

fn is_on_its_side(orientation: Orientation) -> bool {
    matches!(orientation, Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH)
}

impl InputFiles {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.init.is_none() && self.controls.is_empty() && self.references.is_empty()
    }

    /// Width and height of the picture that decides the size of a request that names none: the one to begin with, or the first that a control
    /// network looks at.
    #[must_use]
    pub fn leading_size(&self) -> Option<(u32, u32)> {
        self.init.as_ref().map(|files| &files.image).or(self.controls.first()).map(ImageFile::size)
    }

    /// Decodes the files and brings them to the size of the picture to make: what exceeds its proportions is cut off evenly on both sides,
    /// and the rest is scaled. References become squares of `reference_side` pixels.
    ///
    /// # Errors
    /// When a file is broken, the mask marks nothing, or there is no memory for the pixels.
    pub fn decode(&self, size: ImageSize, reference_side: u32) -> Result<InputImages, GenerationError> {
        let init = self.init.as_ref().map(|files| files.decode(size)).transpose()?;
        // White lines on a transparent ground stay lines: as in diffusers, the colours below the transparency count.
        let controls = self.controls.iter().map(|file| file.decode_to(size, DynamicImage::to_rgb8)).collect::<Result<_, _>>()?;
        let reduce = |file: &ImageFile| -> Result<RgbImage, GenerationError> {
            let reduced = || Ok::<_, InvalidValue>(reduce(&file.decode()?.to_rgb8(), reference_side));
            Ok(ops::with_room(file.room(size), reduced)??)
        };
        Ok(InputImages { init, controls, references: self.references.iter().map(reduce).collect::<Result<_, _>>()? })
    }
}

impl InitFiles {
    /// The files, used in the default way.
    #[must_use]
    pub fn new(image: ImageFile, mask: Option<ImageFile>) -> Self {
        Self { image, mask, fitting: Fitting::default() }
    }

    /// A mask of another size than the picture is stretched over that first.
    fn decode(&self, size: ImageSize) -> Result<InputImage, GenerationError> {
        let room = self.image.room(size) + self.mask.as_ref().map_or(0, |mask| mask.room(size));
        let decoded = || {
            let (picture, Fitting { resize, mask: rules }) = (flatten(&self.image.decode()?), self.fitting);
            let Some(file) = &self.mask else {
                return Ok(InputImage { image: edit_image::fit(&picture, picture.dimensions(), size, resize), mask: None });
            };
            let (mask, meaning) = read_mask(file, rules.opaque_is_new)?;
            edit_image::with_mask(picture, mask, meaning, self.fitting, size).ok_or_else(|| marks_nothing(file.name, meaning))
        };
        Ok(ops::with_room(room, decoded)??)
    }
}

/// Transparent pixels become white.
fn flatten(picture: &DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.to_rgb8();
    }
    let picture = picture.to_rgba8();
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        Rgb([red, green, blue].map(|color| ((color * alpha + 255 * (255 - alpha) + 127) / 255) as u8))
    })
}

/// A mask with transparent pixels marks the part to be repainted by them, or by the others, and any other mask by white. White in the
/// result.
fn read_mask(file: &ImageFile, opaque_is_new: bool) -> Result<(GrayImage, MaskMeaning), InvalidValue> {
    let picture = file.decode()?;
    let alpha = picture.color().has_alpha().then(|| picture.to_rgba8());
    Ok(match alpha.filter(|picture| picture.pixels().any(|pixel| pixel.0[3] < 255)) {
        Some(picture) => {
            let is_new = |alpha: u8| if opaque_is_new { alpha > 128 } else { alpha == 0 };
            let pixel = |x, y| Luma([if is_new(picture.get_pixel(x, y).0[3]) { 255 } else { 0 }]);
            let meaning = if opaque_is_new { MaskMeaning::Opaque } else { MaskMeaning::Transparent };
            (GrayImage::from_fn(picture.width(), picture.height(), pixel), meaning)
        }
        None => (picture.to_luma8(), MaskMeaning::White),
    })
}

fn marks_nothing(name: &'static str, meaning: MaskMeaning) -> InvalidValue {
    let found = match meaning {
        MaskMeaning::Transparent => "one that is transparent nowhere altogether",
        MaskMeaning::White => "one that is white nowhere",
        MaskMeaning::Opaque => "one that is opaque nowhere",
    };
    InvalidValue::new(name, found, "a picture that marks what is painted anew, in white or by transparency")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ExtendedColorType, ImageEncoder, Luma, Rgba, RgbaImage, codecs::png::PngEncoder};
    use proptest::prelude::*;

    use super::*;
    use crate::common::Mask;

    fn png(picture: &DynamicImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn open(picture: impl Into<DynamicImage>) -> ImageFile {
        ImageFile::open("image", png(&picture.into())).unwrap()
    }

    fn size(width: u32, height: u32) -> ImageSize {
        ImageSize::new(width, height).unwrap()
    }

    fn image_and_mask(image: impl Into<DynamicImage>, mask: impl Into<DynamicImage>, to: ImageSize) -> Result<Mask, GenerationError> {
        let files = InitFiles::new(open(image), Some(ImageFile::open("mask", png(&mask.into())).unwrap()));
        Ok(files.decode(to)?.mask.unwrap())
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_header() {
        let whole = png(&RgbImage::new(9, 7).into());
        for (bytes, what) in [
            (vec![], "not an empty file"),
            (b"GIF89a\x01\0\x01\0".to_vec(), "not image/gif"),
            (b"<svg/>".to_vec(), "not 6 bytes of something else"),
            (whole[..20].to_vec(), "one that is broken"),
            (b"\xff\xd8\xff\xe0".to_vec(), "one that is broken"),
            (b"RIFF\x04\0\0\0WEBP".to_vec(), "one that is broken"),
        ] {
            let error = ImageFile::open("image", bytes).unwrap_err();
            assert!(error.to_string().contains(what) && error.to_string().contains("must be a PNG, JPEG or WebP file"), "{error}");
        }
        let cut_short = ImageFile::open("image", whole[..whole.len() - 20].to_vec()).unwrap();
        let error = InitFiles::new(cut_short, None).decode(size(64, 64)).unwrap_err();
        assert!(error.to_string().contains("one that is broken"), "{error}");
    }

    /// A kilobyte that says it is a gigabyte.
    #[test]
    fn a_decompression_bomb_is_refused_before_it_is_decoded() {
        let bomb = |width: u32, height: u32| {
            let mut bytes = png(&RgbImage::new(1, 1).into());
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            // The checksum of the header, over its name and content.
            let crc = !bytes[12..29].iter().fold(u32::MAX, |crc, byte| {
                (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
            });
            bytes[29..33].copy_from_slice(&crc.to_be_bytes());
            bytes
        };
        let error = ImageFile::open("image", bomb(20_000, 20_000)).unwrap_err();
        assert_eq!(error.to_string(), "must be a picture of at most 33554432 pixels, not 20000x20000");
        assert!(ImageFile::open("image", bomb(u32::MAX >> 1, u32::MAX >> 1)).is_err());
        // As much as is allowed, and nothing behind it: an error, and no waiting.
        let files = InitFiles::new(ImageFile::open("image", bomb(8192, 4096)).unwrap(), None);
        assert!(files.decode(size(64, 64)).is_err());
    }

    #[test]
    fn a_photo_stands_as_it_was_taken() {
        let mut jpeg = Cursor::new(Vec::new());
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 100);
        // TIFF header, one entry: orientation (0x112) is 6, which is on its side.
        encoder.set_exif_metadata(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0".to_vec()).unwrap();
        let stored = RgbImage::from_fn(128, 64, |x, _| if x < 64 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        encoder.write_image(&stored, 128, 64, ExtendedColorType::Rgb8).unwrap();
        let image = ImageFile::open("image", jpeg.into_inner()).unwrap();
        assert_eq!(image.size(), (64, 128));
        let picture = InitFiles::new(image, None).decode(size(64, 128)).unwrap().image;
        let [top, bottom] = [picture.get_pixel(32, 20).0, picture.get_pixel(32, 108).0];
        assert!(
            top[0] > 200 && top[2] < 60 && bottom[2] > 200 && bottom[0] < 60,
            "red lay on the left and is at the top: {top:?} {bottom:?}"
        );
    }

    #[test]
    fn every_format_is_read_and_a_picture_of_the_right_size_is_left_as_it_is() {
        let picture = RgbImage::from_fn(72, 64, |x, y| Rgb([x as u8 * 3, y as u8 * 3, 99]));
        for (format, lossless) in [(ImageFormat::Png, true), (ImageFormat::WebP, true), (ImageFormat::Jpeg, false)] {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, format).unwrap();
            let image = ImageFile::open("image", bytes.into_inner()).unwrap();
            assert_eq!(image.size(), (72, 64));
            let decoded = InitFiles::new(image, None).decode(size(72, 64)).unwrap().image;
            assert!(!lossless || decoded == picture, "{format:?}");
        }
        let deep = DynamicImage::ImageRgb16(image::ImageBuffer::from_pixel(64, 64, Rgb([65535, 0, 32768])));
        let decoded = InitFiles::new(open(deep), None).decode(size(64, 64)).unwrap().image;
        assert_eq!(decoded.get_pixel(5, 5).0, [255, 0, 128]);
        let mut clear = RgbaImage::from_pixel(64, 64, Rgba([10, 20, 30, 255]));
        clear.put_pixel(1, 0, Rgba([0, 0, 0, 0]));
        let decoded = InitFiles::new(open(clear), None).decode(size(64, 64)).unwrap().image;
        assert_eq!((decoded.get_pixel(0, 0).0, decoded.get_pixel(1, 0).0), ([10, 20, 30], [255; 3]));
    }

    #[test]
    fn the_picture_to_begin_with_gives_the_size_and_then_the_first_other_one() {
        let picture = |width| open(RgbImage::new(width, 64));
        let init = || Some(InitFiles::new(picture(64), None));
        assert_eq!(InputFiles::default().leading_size(), None);
        assert_eq!(
            InputFiles { init: None, controls: vec![picture(72), picture(80)], ..InputFiles::default() }.leading_size(),
            Some((72, 64))
        );
        assert_eq!(InputFiles { init: init(), controls: vec![picture(72)], ..InputFiles::default() }.leading_size(), Some((64, 64)));
    }

    /// White lines on a transparent ground are no white picture.
    #[test]
    fn transparency_does_not_count_in_what_networks_look_at() {
        let lines = RgbaImage::from_fn(64, 64, |x, _| if x == 32 { Rgba([255; 4]) } else { Rgba([0; 4]) });
        let files = InputFiles { controls: vec![open(lines.clone())], references: vec![open(lines.clone())], init: None };
        let images = files.decode(size(64, 64), 64).unwrap();
        for picture in [&images.controls[0], &images.references[0]] {
            assert_eq!([picture.get_pixel(0, 5).0, picture.get_pixel(32, 5).0], [[0; 3], [255; 3]]);
        }
        let init = InitFiles::new(open(lines), None).decode(size(64, 64)).unwrap();
        assert_eq!(init.image.get_pixel(0, 5).0, [255; 3], "a picture to begin with stands on white");
    }

    #[test]
    fn the_middle_is_kept_in_the_proportions_asked_for() {
        // Thirds of red, green and blue; a square of it is green.
        let flag = RgbImage::from_fn(192, 64, |x, _| Rgb([[255, 0, 0], [0, 255, 0], [0, 0, 255]][x as usize / 64]));
        for to in [size(64, 64), size(128, 128)] {
            let square = InitFiles::new(open(flag.clone()), None).decode(to).unwrap().image;
            assert!(square.pixels().all(|pixel| pixel.0 == [0, 255, 0]), "{to}");
        }
        // A mask of another size is cut where the picture is.
        let mask = GrayImage::from_fn(96, 32, |x, _| Luma([if (48..64).contains(&x) { 255 } else { 0 }]));
        let mask = image_and_mask(flag, mask, size(64, 64)).unwrap();
        assert!(mask.pixels.enumerate_pixels().all(|(x, _, pixel)| (pixel.0[0] == 255) == (x >= 32)));
    }

    #[test]
    fn a_mask_speaks_by_transparency_if_it_has_any_and_else_in_white() {
        let picture = RgbImage::new(64, 64);
        let opaque = RgbaImage::from_fn(64, 64, |x, _| Rgba(if x < 16 { [255; 4] } else { [0, 0, 0, 255] }));
        let clear = RgbaImage::from_fn(64, 64, |x, _| Rgba([255, 255, 255, if x < 16 { 0 } else { 200 }]));
        for (mask, meaning) in [(opaque, MaskMeaning::White), (clear, MaskMeaning::Transparent)] {
            let mask = image_and_mask(picture.clone(), mask, size(64, 64)).unwrap();
            assert_eq!(mask.meaning, meaning);
            assert!(mask.pixels.enumerate_pixels().all(|(x, _, pixel)| pixel.0[0] == if x < 16 { 255 } else { 0 }), "{meaning:?}");
        }
        for (mask, what) in [
            (DynamicImage::from(GrayImage::new(64, 64)), "not one that is white nowhere"),
            (RgbaImage::from_pixel(64, 64, Rgba([255, 255, 255, 9])).into(), "not one that is transparent nowhere altogether"),
        ] {
            let error = image_and_mask(picture.clone(), mask, size(64, 64)).unwrap_err().to_string();
            assert!(error.ends_with(what), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

        #[test]
        fn a_picture_of_any_proportions_fits(width in 1u32..300, height in 1u32..300, across in 8u32..20, down in 8u32..20, wide in any::<bool>()) {
            let (width, height) = if wide { (width * 50, 1) } else { (width, height) };
            let to = size(across * 8, down * 8);
            let decoded = InitFiles::new(open(RgbImage::from_pixel(width, height, Rgb([7, 8, 9]))), None).decode(to).unwrap().image;
            prop_assert_eq!(decoded.dimensions(), (to.width(), to.height()));
            prop_assert!(decoded.pixels().all(|pixel| pixel.0 == [7, 8, 9]));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..4, flip in any::<prop::sample::Index>()) {
            let _ = ImageFile::open("image", [[&b"\x89PNG\r\n\x1a\n"[..], b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8 ", b""][kind], &bytes].concat()).is_ok();
            let mut changed = Vec::new();
            PngEncoder::new(&mut changed).write_image(&[5; 300], 10, 10, ExtendedColorType::Rgb8).unwrap();
            let place = flip.index(changed.len());
            changed[place] ^= bytes.first().copied().unwrap_or(1);
            if let Ok(image) = ImageFile::open("image", changed) {
                let _ = InitFiles::new(image, None).decode(size(64, 64)).is_ok();
            }
        }
    }
}
