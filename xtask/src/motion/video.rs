//! H.264 in MP4 through the FFmpeg library: decoding of the sources, encoding of the clips.

use anyhow::{Context, Result};
use ffmpeg_next::{
    Dictionary, Packet, Rational, codec, encoder, format, frame, log, media,
    software::scaling::{self, Flags},
};
use std::{path::Path, sync::Once};

const FRAMES_A_SECOND: i32 = 24;

/// Packed RGB.
pub struct Image {
    pub width: u32,
    pub height: u32,
    pub rgb: Vec<u8>,
}

/// Every `step`th frame of a video.
pub fn decode(path: &Path, step: usize) -> Result<Vec<Image>> {
    init();
    let mut input = format::input(path)?;
    let stream = input.streams().best(media::Type::Video).context("find a video stream")?;
    let index = stream.index();
    let mut decoder = codec::context::Context::from_parameters(stream.parameters())?.decoder().video()?;
    let (mut images, mut seen) = (vec![], 0);
    for (stream, packet) in input.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet)?;
            drain(&mut decoder, step, &mut seen, &mut images)?;
        }
    }
    decoder.send_eof()?;
    drain(&mut decoder, step, &mut seen, &mut images)?;
    Ok(images)
}

fn drain(
    decoder: &mut codec::decoder::Video,
    step: usize,
    seen: &mut usize,
    images: &mut Vec<Image>,
) -> Result<()> {
    let mut decoded = frame::Video::empty();
    while decoder.receive_frame(&mut decoded).is_ok() {
        *seen += 1;
        if !(*seen - 1).is_multiple_of(step) {
            continue;
        }
        let (width, height) = (decoded.width(), decoded.height());
        let mut scaler = scaling::Context::get(
            decoded.format(),
            width,
            height,
            format::Pixel::RGB24,
            width,
            height,
            Flags::BICUBIC | Flags::ACCURATE_RND,
        )?;
        let mut rgb = frame::Video::empty();
        scaler.run(&decoded, &mut rgb)?;
        let row = width as usize * 3;
        let lines = rgb.data(0).chunks(rgb.stride(0)).take(height as usize);
        images.push(Image { width, height, rgb: lines.flat_map(|l| &l[..row]).copied().collect() });
    }
    Ok(())
}

/// Writes square frames of packed RGB as H.264 (4:2:0, visually lossless).
pub fn encode(path: &Path, size: u32, frames: impl Iterator<Item = Vec<u8>>) -> Result<()> {
    init();
    let mut output = format::output_as(path, "mp4")?;
    let codec = encoder::find_by_name("libx264").context("find FFmpeg's encoder libx264")?;
    let mut context = codec::context::Context::new_with_codec(codec);
    // One thread: the clips themselves are made in parallel.
    context.set_threading(codec::threading::Config::count(1));
    let mut video = context.encoder().video()?;
    video.set_width(size);
    video.set_height(size);
    video.set_format(format::Pixel::YUV420P);
    video.set_time_base(Rational(1, FRAMES_A_SECOND));
    video.set_frame_rate(Some(Rational(FRAMES_A_SECOND, 1)));
    if output.format().flags().contains(format::Flags::GLOBAL_HEADER) {
        video.set_flags(codec::Flags::GLOBAL_HEADER);
    }
    // Without its lookahead: on frames this small that reads memory it never wrote, and the same
    // input does not always give the same file.
    let x264 = "rc-lookahead=0:mbtree=0:bframes=0:scenecut=0:weightp=0";
    let options: Dictionary =
        [("preset", "veryfast"), ("crf", "16"), ("x264-params", x264)].into_iter().collect();
    let mut video = video.open_with(options)?;
    output.add_stream(codec)?.set_parameters(&video);
    output.write_header()?;
    let written = output.stream(0).context("find the stream just added")?.time_base();

    let mut scaler = scaling::Context::get(
        format::Pixel::RGB24,
        size,
        size,
        format::Pixel::YUV420P,
        size,
        size,
        Flags::BICUBIC | Flags::ACCURATE_RND,
    )?;
    let mut rgb = frame::Video::new(format::Pixel::RGB24, size, size);
    let row = size as usize * 3;
    for (t, pixels) in frames.enumerate() {
        let stride = rgb.stride(0);
        for (to, from) in rgb.data_mut(0).chunks_mut(stride).zip(pixels.chunks(row)) {
            to[..row].copy_from_slice(from);
        }
        let mut yuv = frame::Video::empty();
        scaler.run(&rgb, &mut yuv)?;
        yuv.set_pts(Some(t as i64));
        video.send_frame(&yuv)?;
        write_packets(&mut video, &mut output, written)?;
    }
    video.send_eof()?;
    write_packets(&mut video, &mut output, written)?;
    output.write_trailer()?;
    Ok(())
}

fn write_packets(
    video: &mut encoder::Video,
    output: &mut format::context::Output,
    written: Rational,
) -> Result<()> {
    let mut packet = Packet::empty();
    while video.receive_packet(&mut packet).is_ok() {
        packet.set_stream(0);
        // Without it the container ends the video before its last frame.
        packet.set_duration(1);
        packet.rescale_ts(Rational(1, FRAMES_A_SECOND), written);
        packet.write_interleaved(output)?;
    }
    Ok(())
}

fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only where FFmpeg was built without any network support, which files don't need.
        let _ = ffmpeg_next::init();
        log::set_level(log::Level::Error);
    });
}
