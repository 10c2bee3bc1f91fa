//! Each operation against Pillow's own results (`golden.py` made `golden.png`), and what is drawn.

use super::*;
use crate::testing::clip_meta;

const SIDE: usize = 24;
const TILE: usize = SIDE * SIDE * 3;
const ERASING: Erasing = Erasing {
    prob: 1.0,
    area: [0.02, 1.0 / 3.0],
    aspect: [0.3, 1.0 / 0.3],
    mean: [0.45; 3],
    std: [0.225; 3],
};

/// The pictures of `golden.png`, in the order of `golden.py`.
fn golden() -> Vec<Vec<u8>> {
    let file = std::io::Cursor::new(include_bytes!("golden.png"));
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width as usize, info.color_type), (SIDE, png::ColorType::Rgb));
    pixels.chunks(TILE).map(<[u8]>::to_vec).collect()
}

fn applied(op: Op, picture: &[u8]) -> Vec<u8> {
    let mut frame = picture.to_vec();
    op.apply(&mut frame, SIDE as u32, &mut vec![7; 11]);
    frame
}

#[test]
fn every_operation_is_pillows() {
    use Op::*;
    let golden = golden();
    let mut ops = vec![AutoContrast, Equalize, Invert];
    ops.extend([-30.0, 7.0, 21.0].map(Rotate));
    ops.extend([1, 2, 4].map(Posterize));
    ops.extend([0, 77, 256].map(Solarize));
    ops.extend([0, 77, 110].map(SolarizeAdd));
    for blend in [Color, Contrast, Brightness, Sharpness] {
        ops.extend([0.1, 0.37, 1.63, 1.9].map(blend));
    }
    ops.extend([-0.3, 0.21].map(ShearX));
    ops.extend([-0.3, 0.21].map(ShearY));
    ops.extend([-0.45, 0.315].map(TranslateX));
    ops.extend([-0.45, 0.315].map(TranslateY));
    let (picture, [dark, flat]) = (&golden[0], [&golden[1 + ops.len()], &golden[4 + ops.len()]]);
    assert_eq!(golden.len(), 13 + ops.len());
    let mut cases: Vec<(Op, &Vec<u8>, &Vec<u8>)> =
        ops.iter().zip(&golden[1..]).map(|(op, expected)| (*op, picture, expected)).collect();
    for (from, first) in [(dark, 2 + ops.len()), (flat, 5 + ops.len())] {
        cases.extend([(AutoContrast, from, &golden[first]), (Equalize, from, &golden[first + 1])]);
    }
    for (op, from, expected) in cases {
        let found = applied(op, from);
        let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        let off = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        assert!(off == 0, "{op:?}: {off} of {TILE} bytes differ, by up to {worst} levels");
    }
}

#[test]
fn jitter_is_torchvisions() {
    let golden = golden();
    let mut expected = golden[golden.len() - 6..].iter();
    for op in [Op::Brightness as fn(f64) -> Op, Op::Contrast, Op::Color] {
        for factor in [0.6, 1.4] {
            let (found, expected) = (applied(op(factor), &golden[0]), expected.next().unwrap());
            let worst = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            // torchvision cuts the grey off and keeps the mean's fraction, Pillow rounds both.
            assert!(worst <= 1, "{:?}: {worst} levels", op(factor));
        }
    }
}

#[test]
fn levels_become_timms_arguments() {
    // [LEVEL_TO_ARG[name](level, {}) for name in _RAND_INCREASING_TRANSFORMS], negated where it may be
    let at = |level, sign| (0..Op::KINDS).map(|kind| Op::increasing(kind, level, sign)).collect::<Vec<_>>();
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    let found = at(7.3, -1.0);
    let [Op::Rotate(a), Op::Posterize(bits), Op::Solarize(from), Op::SolarizeAdd(add)] = found[3..7] else {
        panic!("{found:?}")
    };
    close(a, -21.9);
    assert_eq!((bits, from, add), (2, 256 - 186, 80));
    let [Op::Color(a), Op::Contrast(b), Op::Brightness(c), Op::Sharpness(d)] = found[7..11] else {
        panic!("{found:?}")
    };
    [a, b, c, d].into_iter().for_each(|factor| close(factor, 0.343));
    let [Op::ShearX(a), Op::ShearY(b), Op::TranslateX(c), Op::TranslateY(d)] = found[11..] else {
        panic!("{found:?}")
    };
    for (found, expected) in [(a, -0.219), (b, -0.219), (c, -0.3285), (d, -0.3285)] {
        close(found, expected);
    }
    assert_eq!(found[..3], [Op::AutoContrast, Op::Equalize, Op::Invert]);
    assert_eq!(
        at(10.0, -1.0)[4..8],
        [Op::Posterize(0), Op::Solarize(0), Op::SolarizeAdd(110), Op::Color(0.1)]
    );
    assert_eq!(at(10.0, 1.0)[9], Op::Brightness(1.9));
}

#[test]
fn rand_augment_draws_what_it_says() {
    let rand_augment = RandAugment { magnitude: 7.0, magnitude_std: 0.5, num_ops: 4, prob: 0.5 };
    let augment = Augment { rand_augment: Some(rand_augment), ..Augment::NONE };
    augment.check().unwrap();
    let draws: Vec<Vec<Op>> = (0..4000).map(|p| augment.draw(224, &[1, 0, p, 0]).0).collect();
    assert_eq!(draws[17], augment.draw(224, &[1, 0, 17, 0]).0);
    let count = draws.iter().map(Vec::len).sum::<usize>();
    assert!((7700..8300).contains(&count), "half of 16 000: {count}");
    assert!(draws.iter().any(|d| d.len() == 4) && draws.iter().any(Vec::is_empty));
    let angles: Vec<f64> = draws
        .iter()
        .flatten()
        .filter_map(|op| if let Op::Rotate(a) = op { Some(*a) } else { None })
        .collect();
    let left = angles.iter().filter(|a| **a < 0.0).count();
    assert!((430..640).contains(&angles.len()) && (190..330).contains(&left), "{left} of {}", angles.len());
    let strengths: Vec<f64> = angles.iter().map(|a| a.abs() / 3.0).collect();
    let mean = strengths.iter().sum::<f64>() / strengths.len() as f64;
    let std = (strengths.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / strengths.len() as f64).sqrt();
    assert!((mean - 7.0).abs() < 0.1 && (std - 0.5).abs() < 0.08, "{mean} +- {std}");
}

#[test]
fn jitter_is_in_its_range_and_any_order() {
    let jitter = ColorJitter { brightness: 0.4, contrast: 0.2, saturation: 0.0 };
    let augment = Augment { color_jitter: Some(jitter), ..Augment::NONE };
    let draws: Vec<Vec<Op>> = (0..1000).map(|p| augment.draw(224, &[1, 0, p, 0]).0).collect();
    let mut first = 0;
    for draw in &draws {
        match draw[..] {
            [Op::Brightness(b), Op::Contrast(c)] | [Op::Contrast(c), Op::Brightness(b)] => {
                assert!((0.6..1.4).contains(&b) && (0.8..1.2).contains(&c));
            }
            _ => panic!("{draw:?}"),
        }
        first += usize::from(matches!(draw[0], Op::Brightness(_)));
    }
    assert!((400..600).contains(&first), "{first}");
    let both = Augment {
        rand_augment: Some(RandAugment { magnitude: 9.0, magnitude_std: 0.5, num_ops: 2, prob: 1.0 }),
        ..augment
    };
    let ops = both.draw(224, &[1, 0, 3, 0]).0;
    assert_eq!(ops[2..], draws[3], "after RandAugment, and drawn as without it");
}

#[test]
fn boxes_lie_inside_and_keep_their_area() {
    let erase = |p| Augment { erasing: Some(ERASING), ..Augment::NONE }.draw(100, &[1, 0, p, 0]).1;
    for e in (0..500).map(|p| erase(p).unwrap()) {
        assert!(e.left + e.width <= 100 && e.top + e.height <= 100, "{e:?}");
        let (area, aspect) = (f64::from(e.width * e.height), f64::from(e.height) / f64::from(e.width));
        assert!((170.0..3500.0).contains(&area) && (0.25..4.0).contains(&aspect), "{e:?}");
    }
    let rare = Augment { erasing: Some(Erasing { prob: 0.25, ..ERASING }), ..Augment::NONE };
    let erased = (0..2000).filter(|&p| rare.draw(100, &[1, 0, p, 0]).1.is_some()).count();
    assert!((430..570).contains(&erased), "{erased}");
}

#[test]
fn the_box_is_filled_with_new_noise_in_every_frame() {
    let erase =
        Erase { left: 10, top: 20, width: 40, height: 50, mean: [0.45, 0.5, 0.4], std: [0.1; 3], seed: 5 };
    let mut clip = vec![9u8; 3 * 96 * 96 * 3];
    erase.fill(&mut clip, 96);
    let mut again = vec![9u8; clip.len()];
    erase.fill(&mut again, 96);
    assert!(clip == again, "the same noise from the same seed");
    let frames: Vec<&[u8]> = clip.chunks(96 * 96 * 3).collect();
    assert_ne!(frames[0], frames[1]);
    for (i, frame) in frames.iter().enumerate() {
        let inside = |p: usize| (10..50).contains(&(p % 96)) && (20..70).contains(&(p / 96));
        let pixels = frame.as_chunks::<3>().0;
        assert!((0..96 * 96).filter(|&p| !inside(p)).all(|p| pixels[p] == [9; 3]), "frame {i}");
        for (c, (mean_of, std_of)) in erase.mean.into_iter().zip(erase.std).enumerate() {
            let values: Vec<f64> = (0..96 * 96)
                .filter(|&p| inside(p))
                .map(|p| (f64::from(pixels[p][c]) / 255.0 - mean_of) / std_of)
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!(mean.abs() < 0.08 && (variance - 1.0).abs() < 0.12, "channel {c}: {mean}, {variance}");
        }
    }
}

#[test]
fn clips_that_know_left_from_right_are_not_mirrored() {
    let augment = Augment { no_flip: vec![2, 5], ..Augment::NONE };
    let mut clip = clip_meta(10, 8, 8, 30.0);
    assert!(augment.may_flip(clip.view()));
    clip.labels = vec![0, 5];
    assert!(!augment.may_flip(clip.view()), "its second label is one");
    (clip.label, clip.labels) = (Some(2), vec![]);
    assert!(!augment.may_flip(clip.view()));
}

#[test]
fn impossible_numbers_are_refused_in_words() {
    let refused = |augment: Augment| augment.check().unwrap_err().to_string();
    let jitter = ColorJitter { brightness: 1.1, contrast: 0.0, saturation: 0.0 };
    assert!(refused(Augment { color_jitter: Some(jitter), ..Augment::NONE }).contains("between 0 and 1"));
    let rand_augment = RandAugment { magnitude: 7.0, magnitude_std: f64::NAN, num_ops: 4, prob: 0.5 };
    assert!(refused(Augment { rand_augment: Some(rand_augment), ..Augment::NONE }).contains("RandAugment"));
    let erasing = Erasing { area: [0.5, 0.2], ..ERASING };
    assert!(refused(Augment { erasing: Some(erasing), ..Augment::NONE }).contains("erasing"));
}
