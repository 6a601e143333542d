//! The built-in data set: of CIFAR-10's shape and size, for machines that do not have the real one.
//!
//! Ten classes: a wave of one of five directions and one of two wavelengths, in the class's mixture of colours, over the
//! class's tint. Every image has its own tint (as large as the class's), phase, contrast and brightness, a second wave of
//! any direction, and noise, so that the mean colour alone puts a quarter of the images into the wrong class.
//!
//! The patterns are coarse and strong on purpose: with PyTorch's initial values the model spends its first hundreds of
//! steps on a plateau where the loss falls slowly and the initial biases still decide the answer. Ten workers with 1,000
//! examples each reach 90 % in four rounds at a learning rate of 0.01 and leave the plateau after about ten at 0.001.
//! Results on this set say that training works, and nothing about accuracy on photographs.
//!
//! An example depends on (seed, split, index) alone and is computed in integers: the same bytes on every machine, and a
//! shard without the rest.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rand::{Rng, RngExt};

use super::cifar::{FILE_RECORDS, FILES, FOLDER};
use super::data::{DataError, PIXELS, Split};
use super::seed::generator;

/// Side of an image, in pixels.
const SIDE: i32 = 32;
/// One period of a wave, in the fixed point of phases.
const PERIOD: i32 = 1 << 16;
/// Directions of the classes' waves: (cosine, sine) of 0, 36, 72, 108 and 144 degrees, times 1,000.
const DIRECTIONS: [(i32, i32); 5] = [(1_000, 0), (809, 588), (309, 951), (-309, 951), (-809, 588)];
/// Wavelengths of the classes' waves, in pixels.
const WAVELENGTHS: [i32; 2] = [20, 44];
/// Largest shift of an image's wave against the class's, either way.
const PHASE: i32 = PERIOD / 10;
/// Colours of the classes' waves, in percent of the contrast per channel. Shared by two classes each.
const COLOURS: [[i32; 3]; 5] =
    [[100, 100, 20], [20, 100, 100], [100, 20, 100], [100, -60, 20], [-60, 20, 100]];
/// Largest absolute tint of a class per channel, in grey levels.
const TINT: i32 = 80;
/// Largest absolute deviation of an image's own tint per channel, in grey levels.
const OWN_TINT: i32 = 80;
/// Largest absolute noise per pixel and channel, in grey levels.
const NOISE: i32 = 32;

/// Class of an example, in either split: each class has as many as any other, as in CIFAR-10.
pub(super) fn label(index: u32) -> u8 {
    (index % 10) as u8
}

/// Sine, from a phase of which [`PERIOD`] is one turn, scaled to +-256; two parabolas, which is close enough.
fn wave(phase: i32) -> i32 {
    let phase = phase & (PERIOD - 1);
    let half = phase & (PERIOD / 2 - 1);
    let bow = ((half >> 4) * ((PERIOD / 2 - half) >> 4)) >> 12;
    if phase < PERIOD / 2 { bow } else { -bow }
}

/// A plane wave: its phase at (0, 0) and its change per pixel.
struct Wave {
    start: i32,
    right: i32,
    down: i32,
}

impl Wave {
    /// `direction` is 1,000 times a unit vector, `wavelength` in pixels.
    fn new(start: i32, direction: (i32, i32), wavelength: i32) -> Self {
        let step = |part: i32| part * (PERIOD / wavelength) / 1_000;
        Self { start, right: step(direction.0), down: step(direction.1) }
    }

    fn at(&self, x: i32, y: i32) -> i32 {
        wave(self.start + x * self.right + y * self.down)
    }
}

/// Tint of a class per channel, in grey levels: the corners of a cube and two of its faces.
fn tint(class: usize, channel: usize) -> i32 {
    let corner = if (class >> channel) & 1 == 1 { TINT } else { -TINT };
    if class >= 8 && channel == 2 { 0 } else { corner }
}

/// Writes the pixels of one example.
pub(super) fn render(seed: u64, split: Split, index: u32, pixels: &mut [u8; PIXELS]) {
    let half = match split {
        Split::Train => 0,
        Split::Test => 1,
    };
    let mut rng = generator(seed, "synthetic example", &[half, index.into()]);
    let class = usize::from(label(index));
    let own = Wave::new(rng.random_range(-PHASE..=PHASE), DIRECTIONS[class % 5], WAVELENGTHS[class / 5]);
    let across = (rng.random_range(-1_000..=1_000), rng.random_range(-1_000..=1_000));
    let other = Wave::new(rng.random_range(0..PERIOD), across, rng.random_range(5..16));
    let (contrast, disturbance) = (rng.random_range(60..110), rng.random_range(0..20));
    let brightness = rng.random_range(118..138);
    rng.fill_bytes(pixels);
    for (channel, plane) in pixels.chunks_exact_mut((SIDE * SIDE) as usize).enumerate() {
        let shade = brightness + tint(class, channel) + rng.random_range(-OWN_TINT..=OWN_TINT);
        let colour = contrast * COLOURS[class % 5][channel] / 100;
        for (at, pixel) in (0..).zip(plane) {
            let (x, y) = (at % SIDE, at / SIDE);
            let noise = ((i32::from(*pixel) - 128) * NOISE) >> 7;
            let waves = (own.at(x, y) * colour + other.at(x, y) * disturbance) >> 8;
            *pixel = (shade + waves + noise).clamp(0, 255) as u8;
        }
    }
}

/// Writes the synthetic set in CIFAR-10's binary layout to `directory/cifar-10-batches-bin`, and returns that folder.
/// Every file appears under its name only when it is complete. 180 MB.
///
/// # Errors
/// [`DataError::Exists`] for the first file that exists, unless `overwrite`; [`DataError::Io`].
pub fn write_synthetic(directory: &Path, seed: u64, overwrite: bool) -> Result<PathBuf, DataError> {
    let folder = directory.join(FOLDER);
    if !overwrite && let Some(file) = FILES.iter().map(|name| folder.join(name)).find(|file| file.exists()) {
        return Err(DataError::Exists { file });
    }
    fs::create_dir_all(&folder).map_err(DataError::io("create", &folder))?;
    for (number, name) in (0..).zip(FILES) {
        let (split, first) =
            if number < 5 { (Split::Train, number * FILE_RECORDS) } else { (Split::Test, 0) };
        let partial = folder.join(format!("{name}.partial"));
        let written = write_file(&partial, seed, split, first);
        let file = folder.join(name);
        if let Err(source) = written.and_then(|()| fs::rename(&partial, &file)) {
            // The error at hand matters more than a failure to clean up after it.
            let _ = fs::remove_file(&partial);
            return Err(DataError::Io { action: "write", path: file, source });
        }
    }
    Ok(folder)
}

fn write_file(path: &Path, seed: u64, split: Split, first: u32) -> std::io::Result<()> {
    let mut file = BufWriter::with_capacity(64 * 1024, File::create(path)?);
    let mut pixels = [0; PIXELS];
    for index in first..first + FILE_RECORDS {
        render(seed, split, index, &mut pixels);
        file.write_all(&[label(index)])?;
        file.write_all(&pixels)?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::data::Source;
    use super::*;

    #[test]
    fn a_wave_is_close_to_a_sine() {
        for phase in (0..PERIOD).step_by(101) {
            let sine = 256.0 * (std::f64::consts::TAU * f64::from(phase) / f64::from(PERIOD)).sin();
            assert!((f64::from(wave(phase)) - sine).abs() < 18.0, "{phase}: {} {sine}", wave(phase));
        }
    }

    #[test]
    fn examples_depend_on_seed_split_and_index_alone() {
        let source = Source::Synthetic { seed: 5 };
        let some = source.read(Split::Train, &[7, 40_003, 7]).unwrap();
        let one = source.read(Split::Train, &[40_003]).unwrap();
        assert_eq!(some.labels(), [7, 3, 7]);
        assert_eq!(&some.pixels()[PIXELS..2 * PIXELS], one.pixels());
        assert_eq!(&some.pixels()[..PIXELS], &some.pixels()[2 * PIXELS..]);
        assert_ne!(one, source.read(Split::Test, &[3]).unwrap());
        assert_ne!(one, source.read(Split::Train, &[13]).unwrap());
        assert_ne!(one, Source::Synthetic { seed: 6 }.read(Split::Train, &[40_003]).unwrap());
    }
    #[test]
    fn the_mean_colour_alone_does_not_give_the_class_away() {
        let source = Source::Synthetic { seed: 1 };
        let colours = |split, range: std::ops::Range<u32>| -> Vec<(usize, [f64; 3])> {
            let examples = source.read(split, &range.collect::<Vec<_>>()).unwrap();
            let mean = |plane: &[u8]| plane.iter().map(|x| f64::from(*x)).sum::<f64>() / plane.len() as f64;
            let colour = |image: &[u8]| [0, 1, 2].map(|channel| mean(&image[channel * 1_024..][..1_024]));
            let images = examples.pixels().chunks_exact(PIXELS).map(colour);
            examples.labels().iter().map(|label| usize::from(*label)).zip(images).collect()
        };
        let mut centres = [[0.0; 3]; 10];
        for (class, colour) in colours(Split::Train, 0..1_000) {
            (0..3).for_each(|channel| centres[class][channel] += colour[channel] / 100.0);
        }
        let distance = |a: &[f64; 3], b: &[f64; 3]| (0..3).map(|c| (a[c] - b[c]).powi(2)).sum::<f64>();
        let test = colours(Split::Test, 0..500);
        let nearest = |colour| {
            (0..10).min_by(|a, b| distance(&centres[*a], colour).total_cmp(&distance(&centres[*b], colour)))
        };
        let right = test.iter().filter(|(class, colour)| nearest(colour) == Some(*class)).count();
        assert!(right < 400, "{right} of 500 by the nearest mean colour");
    }
}
