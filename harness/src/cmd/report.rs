//! `harness report`: results folders to a page, figures and tables.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::print;
use crate::cli::ReportArgs;
use crate::exit::{Exit, Usage};
use crate::report::{Document, Report, check, load, publish};

/// Where a report of several folders goes.
const SHARED_OUT: &str = "results/report";

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<Exit> {
    let out = args.out.clone().unwrap_or_else(|| default_out(&args.dirs));
    check(&out)?;
    let document = args.splice.as_deref().map(read_document).transpose()?;
    let report = Report::of(&load::read(&args.dirs)?)?;
    // What cannot be spliced is known before anything is written.
    let spliced = match args.splice.as_deref().zip(document) {
        Some((file, document)) => {
            let refuse = |wrong| Usage::option("--splice", file.display(), wrong, "rename it");
            Some((file, document.with(&args.dirs, &report.section()).map_err(refuse)?))
        }
        None => None,
    };
    publish(&out, &report.files()?)?;
    let mut said = String::new();
    for (name, needs) in report.missing() {
        said += &format!("left out: {name} ({needs})\n");
    }
    if let Some((file, text)) = spliced {
        splice(file, &text)?;
        said += &format!("tables: {}\n", file.display());
    }
    said += &format!("report: {}\n", out.join("index.html").display());
    print(said.as_bytes())?;
    Ok(Exit::Success)
}

fn default_out(dirs: &[PathBuf]) -> PathBuf {
    match dirs {
        [only] => only.join("report"),
        _ => SHARED_OUT.into(),
    }
}

fn read_document(file: &Path) -> anyhow::Result<Document> {
    let refuse =
        |wrong: String| Usage::option("--splice", file.display(), wrong, "name a file with these two lines");
    let text = fs::read_to_string(file).map_err(|error| refuse(format!("cannot be read ({error})")))?;
    Ok(Document::parse(&text).map_err(refuse)?)
}

/// Replaces `file` as a whole, and keeps its permissions.
fn splice(file: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", file.display());
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fresh = tempfile::NamedTempFile::new_in(parent).with_context(failed)?;
    fs::write(fresh.path(), text).with_context(failed)?;
    let permissions = fs::metadata(file).with_context(failed)?.permissions();
    fs::set_permissions(fresh.path(), permissions).with_context(failed)?;
    fresh.persist(file).with_context(failed)?;
    Ok(())
}
