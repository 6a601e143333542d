//! Cuts CIFAR-10 into an archive for each node, so that a board is given the images of its own shard and no others.
//!
//! An archive has the official layout and every label, which decide whose an example is; the pixels of other nodes' examples
//! are zeros, which compress to nothing. A node finds in it exactly what it finds in the whole set. Which examples are whose
//! follows from the same seed, partition and numbers as in a run, and only for them: a note in the archive says which, so that
//! no other node and no other run takes zeros for images.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use workloads::federated::shard::{self, Cut, Piece, Pool};
use workloads::federated::{Examples, PIECE_FILE, PIXELS, Partition, Source, Split};

use crate::data::BATCHES_DIR;
use crate::exit::Usage;
use crate::record::write_whole;

/// Files of the layout, and how many examples each has.
const FILES: [(&str, Split); 6] = [
    ("data_batch_1.bin", Split::Train),
    ("data_batch_2.bin", Split::Train),
    ("data_batch_3.bin", Split::Train),
    ("data_batch_4.bin", Split::Train),
    ("data_batch_5.bin", Split::Train),
    ("test_batch.bin", Split::Test),
];
const FILE_RECORDS: usize = 10_000;

/// Writes `node-N.tar.gz` into `dir` for each node, from the data at `from`; returns the files. The same input gives the
/// same bytes.
///
/// # Errors
/// Data that cannot be used, too little of it, or a file that cannot be written.
pub fn write(from: &Path, cut: &Cut, dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let refuse = |error: &dyn std::fmt::Display| Usage(format!("--from {}: {error}", from.display()));
    let source = Source::open(from).map_err(|error| refuse(&error))?;
    if let Some(piece) = source.piece().map_err(|error| refuse(&error))? {
        return Err(refuse(&format!("it has the images of {piece} only; name the whole of CIFAR-10")).into());
    }
    let labels = [Split::Train, Split::Test].map(|split| source.labels(split));
    let [train, test] = labels;
    let (train, test) = (train.map_err(|error| refuse(&error))?, test.map_err(|error| refuse(&error))?);
    let nodes = usize::try_from(cut.nodes)?;
    let assign = |partition, pool, per_node| shard::assign(partition, pool, nodes, per_node, cut.seed);
    // As a node does when it reads its shard.
    let own_train = assign(cut.partition, Pool::Labels(&train), cut.examples_per_node);
    let own_test = assign(Partition::Iid, Pool::Len(Split::Test.examples()), cut.test_examples_per_node);
    let (own_train, own_test) =
        (own_train.map_err(|error| refuse(&error))?, own_test.map_err(|error| refuse(&error))?);
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut files = Vec::new();
    for (number, (own_train, own_test)) in (1..).zip(own_train.iter().zip(&own_test)) {
        let read = |split, indices: &[u32]| anyhow::Ok((indices.to_vec(), source.read(split, indices)?));
        let own = [read(Split::Train, own_train)?, read(Split::Test, own_test)?];
        let name = format!("node-{number}.tar.gz");
        let piece = Piece { place: number, cut: *cut };
        write_whole(dir, &name, &archive(piece, &[&train, &test], &own)?)?;
        files.push(dir.join(name));
    }
    Ok(files)
}

fn archive(piece: Piece, labels: &[&[u8]; 2], own: &[(Vec<u32>, Examples); 2]) -> anyhow::Result<Vec<u8>> {
    let places = own.each_ref().map(|(indices, _)| {
        indices.iter().zip(0..).map(|(index, place)| (*index as usize, place)).collect::<BTreeMap<_, _>>()
    });
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    append(&mut archive, PIECE_FILE, &serde_json::to_vec(&piece)?)?;
    for (at, (name, split)) in FILES.into_iter().enumerate() {
        let half = usize::from(split == Split::Test);
        let first = if half == 1 { 0 } else { at * FILE_RECORDS };
        let mut bytes = Vec::with_capacity(FILE_RECORDS * (1 + PIXELS));
        for (index, label) in labels[half].iter().enumerate().skip(first).take(FILE_RECORDS) {
            bytes.push(*label);
            match places[half].get(&index) {
                Some(place) => bytes.extend_from_slice(&own[half].1.pixels()[place * PIXELS..][..PIXELS]),
                None => bytes.resize(bytes.len() + PIXELS, 0),
            }
        }
        append(&mut archive, name, &bytes)?;
    }
    let mut written = archive.into_inner()?.finish()?;
    written.flush()?;
    Ok(written)
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(archive.append_data(&mut header, Path::new(BATCHES_DIR).join(name), bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_finds_its_own_examples_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let whole = workloads::federated::write_synthetic(&dir.path().join("whole"), 3, false).unwrap();
        let partition = Partition::Dirichlet { alpha: 0.5 };
        let cut = Cut { nodes: 2, partition, examples_per_node: 40, test_examples_per_node: 10, seed: 9 };
        let files = write(&whole, &cut, &dir.path().join("shards")).unwrap();
        assert_eq!(files.len(), 2);
        let (whole, own) = (Source::open(&whole).unwrap(), Source::open(&files[1]).unwrap());
        let labels = whole.labels(Split::Train).unwrap();
        assert_eq!(own.labels(Split::Train).unwrap(), labels, "so that shards can be told");
        let shards = shard::assign(partition, Pool::Labels(&labels), 2, 40, 9).unwrap();
        let read = |source: &Source, indices: &[u32]| source.read(Split::Train, indices).unwrap();
        assert_eq!(read(&own, &shards[1]).pixels(), read(&whole, &shards[1]).pixels());
        assert!(read(&own, &shards[0]).pixels().iter().all(|byte| *byte == 0));
        let tests = shard::assign(Partition::Iid, Pool::Len(10_000), 2, 10, 9).unwrap();
        let read = |source: &Source| source.read(Split::Test, &tests[1]).unwrap();
        assert_eq!(read(&own).pixels(), read(&whole).pixels());
        let piece = Piece { place: 2, cut };
        assert_eq!((own.piece().unwrap(), whole.piece().unwrap()), (Some(piece), None));
        own.check_piece(piece).unwrap();
        for other in [Piece { place: 1, cut }, Piece { place: 2, cut: Cut { seed: 8, ..cut } }] {
            let refused = own.check_piece(other).unwrap_err().to_string();
            let has = "has the images of node 2 of 2 (seed 9, dirichlet:0.5, 40 examples and 10 for tests each) only";
            assert!(refused.contains(has) && refused.contains(&other.to_string()), "{refused}");
            whole.check_piece(other).unwrap();
        }
        let refused = write(&files[1], &cut, dir.path()).unwrap_err().to_string();
        assert!(refused.contains("name the whole of CIFAR-10"), "{refused}");
        assert!(files[1].metadata().unwrap().len() < 2_000_000);
        let refused = write(&dir.path().join("nothing"), &cut, dir.path()).unwrap_err().to_string();
        assert!(refused.starts_with("--from ") && refused.contains("no CIFAR-10"), "{refused}");
    }
}
