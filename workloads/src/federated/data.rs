//! Examples: CIFAR-10 in its official binary layout (Krizhevsky 2009), or a built-in synthetic set of the same shape.
//!
//! A node reads its shard and nothing else. What this module deliberately does not do: download anything, keep the whole
//! set in memory, or decide who gets which example (see `shard`). All of it blocks; call it outside of an async runtime.

use std::io;
use std::path::{Path, PathBuf};

use super::cifar::{self, Location};
use super::shard::Piece;
use super::synthetic;

/// Pixel bytes of one example: planes R, G, B of 32 x 32, row by row.
pub const PIXELS: usize = 3 * 32 * 32;

/// Where the official archive is.
pub const ARCHIVE_URL: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";
/// Size of the official archive in bytes.
pub const ARCHIVE_BYTES: u64 = 170_052_171;
/// MD5 of the official archive, as its page states it.
pub const ARCHIVE_MD5: &str = "c32a1d4ab5d03f1284b67883e8d87530";
/// SHA-256 of the official archive.
pub const ARCHIVE_SHA256: &str = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd";

/// Which half of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// 50,000 examples to train on.
    Train,
    /// 10,000 examples to evaluate with.
    Test,
}

impl Split {
    /// Number of examples.
    pub const fn examples(self) -> u32 {
        match self {
            Split::Train => 50_000,
            Split::Test => 10_000,
        }
    }
}

/// Why there are no examples.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Nothing is at the given path.
    #[error("there is no CIFAR-10 at {path}: no such folder or archive. Get it from {ARCHIVE_URL}, or leave the \
             path out to use the built-in synthetic set", path = .path.display())]
    NotFound {
        /// The path given.
        path: PathBuf,
    },
    /// A file of the data set is missing.
    #[error("{file} is missing: a CIFAR-10 folder holds data_batch_1.bin to data_batch_5.bin and test_batch.bin. \
             Unpack {ARCHIVE_URL} there", file = .file.display())]
    Missing {
        /// The file; in an archive, the archive's path and the name in it.
        file: PathBuf,
    },
    /// A file ends too early.
    #[error("{file} is truncated: it has {bytes} bytes instead of {expected} and ends in record {record} (from 0). \
             Copy or unpack it again", file = .file.display(), expected = cifar::FILE_BYTES)]
    Truncated {
        /// The file.
        file: PathBuf,
        /// Its size in bytes.
        bytes: u64,
        /// The first record that is not complete, from 0.
        record: u64,
    },
    /// A file is longer than 10,000 records.
    #[error("{file} has {bytes} bytes, more than the {expected} of a CIFAR-10 file: it is another format (the Python \
             or MATLAB version?). Get the binary version from {ARCHIVE_URL}",
            file = .file.display(), expected = cifar::FILE_BYTES)]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// A record's label is no class.
    #[error("{file}, record {record} (from 0): label {label} is not a class (0 to 9). The file is damaged or of another \
             format; get it again from {ARCHIVE_URL}", file = .file.display())]
    Label {
        /// The file.
        file: PathBuf,
        /// The record, from 0.
        record: u64,
        /// Its label.
        label: u8,
    },
    /// A file that should be an archive is not, or is damaged.
    #[error("{path} is not a readable .tar.gz archive. Get it again from {ARCHIVE_URL} ({ARCHIVE_BYTES} bytes)",
            path = .path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What the decoder said.
        source: io::Error,
    },
    /// What is there is one node's shard, and others are asked for.
    #[error("{path} has the images of {has} only, not those of {wants}: use the options that it was cut for, or cut it \
             again", path = .path.display())]
    OtherPiece {
        /// The folder or archive.
        path: PathBuf,
        /// Whose images are there.
        has: Box<Piece>,
        /// Whose are asked for.
        wants: Box<Piece>,
    },
    /// The note that says whose shard this is cannot be understood.
    #[error("{path} does not say whose shard it is: cut it again", path = .path.display())]
    PieceUnreadable {
        /// The note.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// An example was asked for that does not exist.
    #[error("there is no example {index} in {split:?}: it has {}", .split.examples())]
    Index {
        /// The half asked.
        split: Split,
        /// The index asked for.
        index: u32,
    },
    /// Labels and pixels do not belong together.
    #[error("{labels} labels and {pixels} pixel bytes are not examples of {PIXELS} bytes with labels 0 to 9")]
    Shape {
        /// Labels given.
        labels: usize,
        /// Pixel bytes given.
        pixels: usize,
    },
    /// A file to be written exists.
    #[error("{file} exists and would be overwritten: choose another folder, or ask for overwriting",
            file = .file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// The file system failed.
    #[error("cannot {action} {path}", path = .path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl DataError {
    /// Adds the path to an error of the file system.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Labelled images in memory, one byte per pixel and channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Examples {
    labels: Vec<u8>,
    pixels: Vec<u8>,
}

impl Examples {
    /// Examples from their labels (0 to 9) and their pixels, [`PIXELS`] bytes each.
    ///
    /// # Errors
    /// [`DataError::Shape`].
    pub fn new(labels: Vec<u8>, pixels: Vec<u8>) -> Result<Self, DataError> {
        if labels.len().checked_mul(PIXELS) != Some(pixels.len()) || labels.iter().any(|label| *label > 9) {
            return Err(DataError::Shape { labels: labels.len(), pixels: pixels.len() });
        }
        Ok(Self { labels, pixels })
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The classes, 0 to 9.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The pixels, `[len, 3, 32, 32]` row-major.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

/// Where examples come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// CIFAR-10, in a folder or an archive, made with [`Source::open`].
    Cifar(Location),
    /// The built-in set, generated on demand; see [`write_synthetic`](super::write_synthetic) for the same in files.
    Synthetic {
        /// Another seed gives other images of the same classes.
        seed: u64,
    },
}

impl Source {
    /// CIFAR-10 at `path`: a folder with the six files, a folder with `cifar-10-batches-bin/`, or the `.tar.gz`.
    ///
    /// The check is cheap. Of a folder's files the presence and the size are known afterwards; of an archive only that
    /// it begins like one, since its contents show while it is read.
    ///
    /// # Errors
    /// [`DataError`], naming the file at fault and a remedy.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Location::open(path).map(Self::Cifar)
    }

    /// Whose images are there, if they are one shard's only; of all others there are black images.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn piece(&self) -> Result<Option<Piece>, DataError> {
        match self {
            Self::Cifar(location) => location.piece(),
            Self::Synthetic { .. } => Ok(None),
        }
    }

    /// Checks that the images of `wanted` are there.
    ///
    /// # Errors
    /// [`DataError::OtherPiece`] if they are another one's.
    pub fn check_piece(&self, wanted: Piece) -> Result<(), DataError> {
        match (self, self.piece()?) {
            (Self::Cifar(Location::Folder(path) | Location::Archive(path)), Some(has)) if has != wanted => {
                Err(DataError::OtherPiece { path: path.clone(), has: Box::new(has), wants: Box::new(wanted) })
            }
            _ => Ok(()),
        }
    }

    /// Whether this is the built-in synthetic set.
    pub fn is_synthetic(&self) -> bool {
        matches!(self, Self::Synthetic { .. })
    }

    /// The class of every example of `split`, by index. Reads through all of it, in bounded memory.
    ///
    /// # Errors
    /// [`DataError`]; every label is checked.
    pub fn labels(&self, split: Split) -> Result<Vec<u8>, DataError> {
        match self {
            Self::Cifar(location) => location.labels(split),
            Self::Synthetic { .. } => Ok((0..split.examples()).map(synthetic::label).collect()),
        }
    }

    /// The examples of `split` at `indices`, in their order; an index may occur more than once. A folder is read at
    /// these records only; an archive in one pass, in which all others are discarded.
    ///
    /// # Errors
    /// [`DataError`]; the labels of the examples read are checked.
    pub fn read(&self, split: Split, indices: &[u32]) -> Result<Examples, DataError> {
        if let Some(index) = indices.iter().find(|index| **index >= split.examples()) {
            return Err(DataError::Index { split, index: *index });
        }
        match self {
            Self::Cifar(location) => location.read(split, indices),
            Self::Synthetic { seed } => {
                let mut pixels = vec![0; indices.len() * PIXELS];
                for (index, pixels) in indices.iter().zip(pixels.as_chunks_mut().0) {
                    synthetic::render(*seed, split, *index, pixels);
                }
                Examples::new(indices.iter().map(|index| synthetic::label(*index)).collect(), pixels)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_have_the_right_shape() {
        assert_eq!(Examples::new(vec![9], vec![0; PIXELS]).unwrap().len(), 1);
        for (labels, pixels) in [(vec![10], PIXELS), (vec![1], PIXELS - 1), (vec![], 1)] {
            assert!(matches!(Examples::new(labels, vec![0; pixels]), Err(DataError::Shape { .. })));
        }
    }

    #[test]
    fn an_index_out_of_range_is_an_error() {
        let source = Source::Synthetic { seed: 1 };
        let error = source.read(Split::Test, &[9_999, 10_000]).unwrap_err();
        assert!(matches!(error, DataError::Index { index: 10_000, .. }), "{error}");
    }
}
