//! `harness data`: what is on disk, the synthetic set, the download.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::Path;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};

use workloads::federated::shard::Cut;
use workloads::federated::{FileStatus, Location, Status};

use super::print;
use crate::cli::DataCommand;
use crate::data::{self, Download};
use crate::exit::Exit;
use crate::shards;
use crate::units::show_bytes;

pub(super) fn run(command: &DataCommand) -> anyhow::Result<Exit> {
    match command {
        DataCommand::Status { dir } => {
            let status = data::status(dir)?;
            print(table(&status).as_bytes())?;
            Ok(if status.is_complete() { Exit::Success } else { Exit::Failed })
        }
        DataCommand::Shards {
            dir,
            from,
            nodes,
            seed,
            partition,
            examples_per_node,
            test_examples_per_node,
        } => {
            let cut = Cut {
                nodes: *nodes,
                partition: partition.0,
                examples_per_node: *examples_per_node,
                test_examples_per_node: *test_examples_per_node,
                seed: *seed,
            };
            let files = shards::write(from, &cut, dir)?;
            print(format!("{} archives in {}\n", files.len(), dir.display()).as_bytes())?;
            Ok(Exit::Success)
        }
        DataCommand::Synthesize { dir } => installed(&data::synthesize(dir)?, dir),
        DataCommand::Fetch { dir, url, sha256, quiet } => {
            let download =
                Download { url: url.clone(), sha256: sha256.clone(), max_bytes: data::MAX_ARCHIVE_BYTES };
            let folder = if *quiet || !std::io::stderr().is_terminal() {
                data::fetch(&download, dir, &mut |_, _| {})?
            } else {
                let bar = ProgressBar::new_spinner();
                let folder = data::fetch(&download, dir, &mut |done, total| show(&bar, done, total));
                bar.finish_and_clear();
                folder?
            };
            installed(&folder, dir)
        }
    }
}

fn show(bar: &ProgressBar, done: u64, total: Option<u64>) {
    if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
        bar.set_length(total);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left")
        {
            bar.set_style(style);
        }
    }
    bar.set_position(done);
}

fn installed(folder: &Path, dir: &Path) -> anyhow::Result<Exit> {
    print(format!("{}\nUse it with: harness run --data {}\n", folder.display(), dir.display()).as_bytes())?;
    Ok(Exit::Success)
}

fn state(file: &FileStatus) -> String {
    match (file.bytes, file.expected_bytes) {
        (None, None) => "missing (optional)".into(),
        (None, Some(_)) => "missing".into(),
        (Some(bytes), Some(expected)) if bytes != expected => format!("{bytes} bytes instead of {expected}"),
        (Some(_), _) => "complete".into(),
    }
}

fn table(status: &Status) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["file", "size", "state"]);
    for file in &status.files {
        let size = file.bytes.map_or_else(|| "-".into(), show_bytes);
        table.add_row([file.name, &size, &state(file)]);
    }
    let place = match &status.location {
        Location::Folder(path) | Location::Archive(path) => path.display().to_string(),
        other => format!("{other:?}"),
    };
    let mut text = format!("{place}\n{table}\n");
    if !status.is_complete() {
        let _ = writeln!(
            text,
            "Incomplete. Get the data with `harness data fetch DIR`, or do without: `harness run`."
        );
    }
    text
}
