//! Reports and comparisons, made by the built binary of small results folders (tests/golden).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use resvg::usvg::roxmltree::Document;

const GOLDEN: [&str; 3] = ["recovery", "traffic", "elections"];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn golden(name: &str) -> String {
    workspace().join("tests/golden").join(name).to_str().unwrap().to_owned()
}

/// Runs the binary in `dir`: exit code, standard output, standard error.
fn harness(dir: &Path, words: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_harness"))
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn report(dir: &Path, out: &str, names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let folders: Vec<String> = names.iter().map(|name| golden(name)).collect();
    let mut words = vec!["report", "--out", out];
    words.extend(folders.iter().map(String::as_str));
    let (code, _, error) = harness(dir, &words);
    assert_eq!((code, error.as_str()), (0, ""), "{words:?}");
    let mut files = BTreeMap::new();
    for folder in ["", "figures"] {
        for entry in fs::read_dir(dir.join(out).join(folder)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                let name = Path::new(folder).join(entry.file_name()).to_str().unwrap().to_owned();
                files.insert(name, fs::read(entry.path()).unwrap());
            }
        }
    }
    files
}

#[test]
fn a_report_is_the_golden_one_and_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = report(dir.path(), "first", &GOLDEN);
    let markdown = String::from_utf8(first["report.md"].clone()).unwrap();
    let golden = workspace().join("tests/golden/report.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &markdown).unwrap();
    }
    assert_eq!(markdown, fs::read_to_string(golden).unwrap(), "see tests/golden/README.md");
    // Over the first one: a report replaces an earlier one.
    assert!(report(dir.path(), "first", &GOLDEN) == first, "rebuilt from the same files, it differs");
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let files = report(dir.path(), "out", &GOLDEN);
    let page = String::from_utf8(files["index.html"].clone()).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"));
    // HTML's only void element here, closed for a parser of XML.
    let mut xml = page.trim_start_matches("<!DOCTYPE html>").to_owned();
    for (start, _) in page.match_indices("<meta ") {
        let tag = &page[start..=start + page[start..].find('>').unwrap()];
        xml = xml.replace(tag, &tag.replace('>', "/>"));
    }
    let document = Document::parse(&xml).unwrap();
    for element in document.descendants().filter(|node| node.is_element()) {
        assert!(
            !["script", "link", "img", "iframe", "image"].contains(&element.tag_name().name()),
            "{element:?}"
        );
        for attribute in element.attributes().filter(|attribute| attribute.name() == "href") {
            let target = attribute.value().strip_prefix('#').unwrap();
            let there = document.descendants().any(|node| node.attribute("id") == Some(target));
            assert!(there, "a link to {target}, which is not there");
        }
    }
    assert!(page.matches("url(").count() == page.matches("url(data:").count() && !page.contains("@import"));
    let figures = document.descendants().filter(|node| node.tag_name().name() == "section");
    let ids: Vec<&str> = figures.filter_map(|figure| figure.attribute("id")).collect();
    for expected in [
        "recovery-reelection",
        "recovery-stages",
        "recovery-learning",
        "recovery-classes",
        "recovery-cost",
        "traffic-traffic",
        "traffic-classes",
        "traffic-cost",
        "elections",
    ] {
        assert!(ids.contains(&expected), "{expected} is missing in {ids:?}");
    }
    for id in &ids {
        let svg = std::str::from_utf8(&files[&format!("figures/{id}.svg")]).unwrap();
        assert_eq!(Document::parse(svg).unwrap().root_element().tag_name().name(), "svg");
        let png = &files[&format!("figures/{id}.png")];
        assert!(
            png.starts_with(b"\x89PNG\r\n") && png.len() > 4_000,
            "{id}.png is empty: {} bytes",
            png.len()
        );
    }
    assert_eq!(files.len(), 2 + 2 * ids.len());
}

/// Expects bad input: one line, with these words in it, and nothing written.
fn refused(dir: &Path, words: &[&str], expected: &str) {
    let before = fs::read_dir(dir).unwrap().count();
    let (code, out, error) = harness(dir, words);
    assert_eq!((code, out.as_str(), error.lines().count()), (2, "", 1), "{words:?}: {error}");
    assert!(error.contains(expected), "{words:?}: {error}");
    assert_eq!(fs::read_dir(dir).unwrap().count(), before, "{words:?} left something behind");
}

/// A copy of a golden folder with another text in one of its files.
fn copy(dir: &Path, name: &str, to: &str, file: &str, change: impl Fn(String) -> String) -> String {
    let target = dir.join(to);
    fs::create_dir(&target).unwrap();
    for entry in fs::read_dir(golden(name)).unwrap().map(Result::unwrap) {
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = if entry.file_name() == file { change(text) } else { text };
        fs::write(target.join(entry.file_name()), text).unwrap();
    }
    target.to_str().unwrap().to_owned()
}

#[test]
fn folders_that_cannot_be_reported_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    let header = |text: String| text.lines().next().unwrap().to_owned() + "\n";
    let trialless = copy(dir, "traffic", "trialless", "trials.csv", header);
    let newer =
        copy(dir, "traffic", "newer", "manifest.json", |text| text.replace("\"layout\": 1", "\"layout\": 9"));
    let damaged =
        copy(dir, "traffic", "damaged", "rounds.csv", |text| text.replace("500000000", "half a second"));
    let kindless =
        copy(dir, "traffic", "kindless", "manifest.json", |text| text.replace("experiment\"", "thesis\""));
    let run =
        copy(dir, "traffic", "run", "manifest.json", |text| text.replace("\"kind\": \"experiment\",", ""));
    let traffic = golden("traffic");
    for (folders, expected) in [
        (vec!["missing"], "missing is no results folder (it has no manifest.json)"),
        (vec!["empty"], "empty is no results folder (it has no manifest.json); name a folder made by"),
        (vec!["."], "did you mean ./"),
        (vec![&trialless], "trialless is empty (trials.csv has no trial)"),
        (vec![&newer], "newer is of layout 9, this program reads layout 1; use the program that made it"),
        (vec![&damaged], "rounds.csv: row 1 cannot be read"),
        (vec![&kindless], "is of the unknown kind \"thesis\""),
        (vec![&traffic, &traffic], "is named twice"),
        (vec![&run, &traffic], "they are not mixed"),
        (vec![&run], "is of a run that has not ended"),
    ] {
        let words: Vec<&str> = ["report", "--out", "report"].into_iter().chain(folders).collect();
        refused(dir, &words, expected);
    }
    refused(dir, &["report", &traffic, "--out", "newer"], "--out newer: holds something that is no report");
    refused(
        dir,
        &["report", &traffic, "--out", "r", "--splice", "none.md"],
        "--splice none.md: cannot be read",
    );
    fs::write(dir.join("bare.md"), "# Title\n").unwrap();
    refused(
        dir,
        &["report", &traffic, "--out", "r", "--splice", "bare.md"],
        "--splice bare.md: needs a line",
    );
}

#[test]
fn tables_are_spliced_between_the_markers_of_a_document() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("doc.md");
    let text = "# Title\n\n<!-- harness report -->\n<!-- end of harness report -->\n\nMore.\n";
    fs::write(&file, text).unwrap();
    let words = ["report", &golden("traffic"), "--out", "out", "--splice", "doc.md"];
    for _ in 0..2 {
        assert_eq!(harness(dir.path(), &words).0, 0);
        let spliced = fs::read_to_string(&file).unwrap();
        assert!(
            spliced.starts_with("# Title\n\n<!-- harness report /") && spliced.ends_with("-->\n\nMore.\n"),
            "{spliced}"
        );
        assert_eq!(
            spliced.matches("| raft inline |").count(),
            2,
            "one row of traffic and one of safety: {spliced}"
        );
    }
}

/// The README's tables are those that the report makes of the folders that its marker names.
#[test]
fn the_readme_shows_what_the_committed_results_say() {
    let text = fs::read_to_string(workspace().join("README.md")).unwrap();
    let document = harness::report::Document::parse(&text).unwrap();
    if document.dirs.is_empty() {
        assert_eq!(document.section, "", "tables without a folder they come from");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("README.md");
    fs::write(&copy, &text).unwrap();
    let out = dir.path().join("out");
    let mut words = vec!["report", "--out", out.to_str().unwrap(), "--splice", copy.to_str().unwrap()];
    words.extend(document.dirs.iter().map(|dir| dir.to_str().unwrap()));
    let (code, _, error) = harness(&workspace(), &words);
    assert_eq!(code, 0, "{error}");
    assert_eq!(fs::read_to_string(copy).unwrap(), text, "run `harness report ... --splice README.md`");
}

#[test]
fn a_comparison_says_which_differences_are_real() {
    let dir = tempfile::tempdir().unwrap();
    let (recovery, traffic) = (golden("recovery"), golden("traffic"));
    let (code, same, _) = harness(dir.path(), &["compare", &recovery, &recovery]);
    assert_eq!(code, 0);
    assert!(same.contains("\n0 of ") && same.contains("backend=raft payload=inline"), "{same}");
    let slower = copy(dir.path(), "elections", "slower", "elections.csv", |text| {
        let (head, rows) = text.split_once('\n').unwrap();
        let column = head.split(',').position(|name| name == "agreed_ns").unwrap();
        let slow = rows.lines().map(|row| {
            let mut cells: Vec<String> = row.split(',').map(str::to_owned).collect();
            cells[column] = (cells[column].parse::<u64>().unwrap() * 2).to_string();
            cells.join(",")
        });
        [head.to_owned()].into_iter().chain(slow).collect::<Vec<_>>().join("\n") + "\n"
    });
    let (_, json, _) = harness(dir.path(), &["compare", &golden("elections"), &slower, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    let difference = &found["differences"][0];
    assert_eq!((&difference["quantity"], &difference["real"]), (&"agreed_ns".into(), &true.into()), "{json}");
    assert!((difference["ratio"].as_f64().unwrap() - 2.0).abs() < 1e-6, "{json}");
    refused(dir.path(), &["compare", &recovery, &golden("elections")], "compare folders of the same kind");
    refused(dir.path(), &["compare", &recovery, &traffic], "have no cell in common");
    let newer = copy(dir.path(), "traffic", "newer", "manifest.json", |text| {
        text.replace("\"layout\": 1", "\"layout\": 9")
    });
    refused(dir.path(), &["compare", &traffic, &newer], "is of layout 9");
}
