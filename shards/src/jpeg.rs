//! JPEG decoding of a part of a frame: what lies outside is neither transformed nor converted to RGB.
//!
//! The `turbojpeg` crate wraps the same library without its cropping region; these few calls add it. A part
//! is the same, byte for byte, as that part of the whole decoded frame.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;
use turbojpeg::raw;

/// A part of a frame, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

/// `tjMCUWidth`, which the library keeps in its header: pixels, by chroma subsampling.
const BLOCK_WIDTHS: [u32; 7] = [8, 16, 16, 8, 8, 32, 8];

/// libjpeg-turbo's decompressor, kept from frame to frame.
#[derive(Debug)]
pub struct Decoder(NonNull<std::ffi::c_void>);

impl Decoder {
    /// # Errors
    /// No memory for it.
    pub fn new() -> Result<Self, String> {
        // SAFETY: it takes no pointer; null means failure.
        let handle = unsafe { raw::tj3Init(raw::TJINIT_TJINIT_DECOMPRESS as c_int) };
        NonNull::new(handle).map(Self).ok_or_else(|| "libjpeg-turbo has no memory for a decoder".into())
    }

    /// Decodes at least `wanted` of a frame of `size` (width, height) into `pixels`, as RGB rows, and returns the part
    /// that it has decoded: JPEG is cut into blocks, and smooth chroma looks a pixel beyond each edge.
    ///
    /// # Errors
    /// What libjpeg-turbo finds wrong, or a frame of another size; that is known before anything is allocated for it.
    pub fn decode(
        &mut self,
        jpeg: &[u8],
        size: (u32, u32),
        wanted: Region,
        pixels: &mut Vec<u8>,
    ) -> Result<Region, String> {
        let block = self.header(jpeg, size)?;
        let region = block.map_or(Region::whole(size), |block| wanted.with_neighbours(block, size));
        pixels.resize(region.bytes(), 0);
        self.decompress(jpeg, size, region, pixels)?;
        Ok(region)
    }

    /// Decodes the whole frame into `pixels`, (height, width, 3).
    ///
    /// # Errors
    /// As `decode`.
    ///
    /// # Panics
    /// `pixels` is not as long as the frame.
    pub fn decode_whole(&mut self, jpeg: &[u8], size: (u32, u32), pixels: &mut [u8]) -> Result<(), String> {
        self.header(jpeg, size)?;
        self.decompress(jpeg, size, Region::whole(size), pixels)
    }

    /// Reads the header; the width of a block of the frame, where it can be decoded in parts.
    fn header(&mut self, jpeg: &[u8], (width, height): (u32, u32)) -> Result<Option<u32>, String> {
        // SAFETY: the handle is alive, and the bytes are borrowed for the call, which keeps no pointer to them.
        let status =
            unsafe { raw::tj3DecompressHeader(self.0.as_ptr(), jpeg.as_ptr(), jpeg.len() as raw::size_t) };
        self.check(status)?;
        let found = (self.get(raw::TJPARAM_TJPARAM_JPEGWIDTH), self.get(raw::TJPARAM_TJPARAM_JPEGHEIGHT));
        if (i64::from(found.0), i64::from(found.1)) != (width.into(), height.into()) {
            return Err(format!("the JPEG is {}x{}, not {width}x{height}", found.0, found.1));
        }
        if self.get(raw::TJPARAM_TJPARAM_LOSSLESS) != 0 {
            return Ok(None);
        }
        let subsampling = usize::try_from(self.get(raw::TJPARAM_TJPARAM_SUBSAMP)).ok();
        Ok(subsampling.and_then(|s| BLOCK_WIDTHS.get(s)).copied())
    }

    fn decompress(
        &mut self,
        jpeg: &[u8],
        size: (u32, u32),
        region: Region,
        pixels: &mut [u8],
    ) -> Result<(), String> {
        assert_eq!(pixels.len(), region.bytes(), "the pixels of {region:?}");
        let part = match region == Region::whole(size) {
            true => raw::tjregion { x: 0, y: 0, w: 0, h: 0 },
            false => raw::tjregion {
                x: region.left as c_int,
                y: region.top as c_int,
                w: region.width as c_int,
                h: region.height as c_int,
            },
        };
        // SAFETY: the handle is alive. The library refuses a region beyond the frame of the header that was read last,
        // which is that of these same bytes and has `size` (see `header`); so it writes `region.bytes()`, the
        // length of `pixels`, asserted above. Both slices are borrowed for the call.
        let status = unsafe {
            match raw::tj3SetCroppingRegion(self.0.as_ptr(), part) {
                0 => raw::tj3Decompress8(
                    self.0.as_ptr(),
                    jpeg.as_ptr(),
                    jpeg.len() as raw::size_t,
                    pixels.as_mut_ptr(),
                    0,
                    raw::TJPF_TJPF_RGB,
                ),
                refused => refused,
            }
        };
        self.check(status)
    }

    fn get(&self, parameter: raw::TJPARAM) -> c_int {
        // SAFETY: the handle is alive; the call reads one number of it.
        unsafe { raw::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    fn check(&self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the message is a C string inside the live handle, copied before anything else is called on it.
        let message = unsafe { CStr::from_ptr(raw::tj3GetErrorStr(self.0.as_ptr())) };
        Err(message.to_string_lossy().into_owned())
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle came from `tj3Init` and is used no more.
        unsafe { raw::tj3Destroy(self.0.as_ptr()) }
    }
}

impl Region {
    pub fn whole((width, height): (u32, u32)) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// Bytes of its RGB pixels.
    pub fn bytes(self) -> usize {
        self.width as usize * self.height as usize * 3
    }

    /// With what smooth chroma needs around it, from a block's left edge on.
    fn with_neighbours(self, block: u32, (width, height): (u32, u32)) -> Self {
        // A chroma sample spans up to four pixels across and is blended with the next one.
        const AROUND: u32 = 8;
        let left = self.left.min(width).saturating_sub(AROUND) / block * block;
        let top = self.top.min(height).saturating_sub(AROUND);
        let right = self.left.saturating_add(self.width).saturating_add(AROUND).min(width);
        let bottom = self.top.saturating_add(self.height).saturating_add(AROUND).min(height);
        Self { left, top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

    const SAMPLINGS: [Subsamp; 5] =
        [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Sub1x2, Subsamp::Gray];

    /// A picture with detail in every block.
    fn jpeg((width, height): (u32, u32), sampling: Subsamp, quality: i32) -> Vec<u8> {
        let pixels: Vec<u8> = (0..width * height * 3)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 / 3 + (i / 7 % 170) as u8)
            .collect();
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(quality).unwrap();
        compressor.set_subsamp(sampling).unwrap();
        let (width, height) = (width as usize, height as usize);
        let image = Image { pixels: &pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
        compressor.compress_to_vec(image).unwrap()
    }

    proptest! {
        #[test]
        fn a_part_is_that_part_of_the_whole(
            width in 1_u32..90, height in 1_u32..90, sampling in 0..SAMPLINGS.len(), quality in 60..96,
            at in prop::array::uniform4(0.0..1.0_f64),
        ) {
            let size = (width, height);
            let jpeg = jpeg(size, SAMPLINGS[sampling], quality);
            let mut decoder = Decoder::new().unwrap();
            let mut whole = vec![0; Region::whole(size).bytes()];
            decoder.decode_whole(&jpeg, size, &mut whole).unwrap();

            let (left, top) = ((f64::from(width) * at[0]) as u32, (f64::from(height) * at[1]) as u32);
            let extent = |room: u32, part: f64| 1 + (f64::from(room - 1) * part) as u32;
            let wanted =
                Region { left, top, width: extent(width - left, at[2]), height: extent(height - top, at[3]) };
            let mut pixels = Vec::new();
            let got = decoder.decode(&jpeg, size, wanted, &mut pixels).unwrap();
            prop_assert!(got.left <= left && got.top <= top);
            prop_assert!(got.left + got.width >= left + wanted.width);
            prop_assert!(got.top + got.height >= top + wanted.height);
            for y in top..top + wanted.height {
                for x in left..left + wanted.width {
                    let there = ((y * width + x) * 3) as usize;
                    let here = (((y - got.top) * got.width + x - got.left) * 3) as usize;
                    prop_assert_eq!(&pixels[here..here + 3], &whole[there..there + 3], "at ({}, {})", x, y);
                }
            }
        }

        #[test]
        fn bytes_that_are_no_jpeg_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let wanted = Region { left: 1, top: 1, width: 2, height: 2 };
            let mut pixels = Vec::new();
            prop_assert!(Decoder::new().unwrap().decode(&bytes, (8, 8), wanted, &mut pixels).is_err());
            prop_assert!(pixels.is_empty());
        }
    }

    #[test]
    fn a_frame_of_another_size_and_a_torn_one_are_errors() {
        let bytes = jpeg((40, 30), Subsamp::Sub2x2, 90);
        let mut decoder = Decoder::new().unwrap();
        let mut pixels = Vec::new();
        let wanted = Region { left: 3, top: 3, width: 4, height: 4 };
        let other = decoder.decode(&bytes, (40, 31), wanted, &mut pixels).unwrap_err();
        assert_eq!(other, "the JPEG is 40x30, not 40x31");
        assert!(pixels.is_empty());
        // Torn below the part too: the rest is read, though not transformed.
        assert!(decoder.decode(&bytes[..bytes.len() * 3 / 4], (40, 30), wanted, &mut pixels).is_err());
        // The decoder is as good as new after that.
        assert!(decoder.decode(&bytes, (40, 30), wanted, &mut pixels).is_ok());
    }
}
