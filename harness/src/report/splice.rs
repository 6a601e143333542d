//! The part of a README that the report writes: between two marker lines, of which the first names the folders it is made of.
//! Pure.

use std::path::{Path, PathBuf};

const BEGIN: &str = "<!-- harness report";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- end of harness report -->";

/// A document cut at its markers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    before: String,
    /// The folders that the section is made of, as they were named; none: the section is empty.
    pub dirs: Vec<PathBuf>,
    /// What is between the markers.
    pub section: String,
    after: String,
}

impl Document {
    /// Finds the markers in `text`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wanted = || format!("needs a line `{BEGIN} -->` and, below it, `{END}`");
        let start = text.find(BEGIN).ok_or_else(wanted)?;
        let rest = &text[start + BEGIN.len()..];
        let line = rest.lines().next().unwrap_or_default();
        let dirs = line.strip_suffix(BEGIN_END).ok_or_else(wanted)?;
        let body = &rest[line.len()..];
        let end = body.find(END).ok_or_else(wanted)?;
        if body[end + END.len()..].contains(BEGIN) {
            return Err("has more than one section of a report".into());
        }
        Ok(Self {
            before: text[..start].to_owned(),
            dirs: dirs.split_whitespace().map(PathBuf::from).collect(),
            section: body[..end].trim_start_matches('\n').to_owned(),
            after: body[end + END.len()..].to_owned(),
        })
    }

    /// The document with another section.
    ///
    /// # Errors
    /// A folder whose name cannot be in a marker line.
    pub fn with(&self, dirs: &[PathBuf], section: &str) -> Result<String, String> {
        let dirs: String = dirs.iter().map(|dir| named(dir)).collect::<Result<_, _>>()?;
        Ok(format!("{}{BEGIN}{dirs}{BEGIN_END}\n{section}{END}{}", self.before, self.after))
    }
}

/// A folder after a space, and without a slash at its end, so that it is named in one way.
fn named(dir: &Path) -> Result<String, String> {
    let name = dir.display().to_string();
    let name = Some(name.trim_end_matches('/')).filter(|name| !name.is_empty()).unwrap_or(&name);
    if name.is_empty() || name.contains(char::is_whitespace) || name.contains(BEGIN_END.trim_start()) {
        return Err(format!("cannot name the folder {name:?}, for its spaces or an arrow in it"));
    }
    Ok(format!(" {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let text = "# Title\n\n<!-- harness report -->\n<!-- end of harness report -->\n\nMore.\n";
        let document = Document::parse(text).unwrap();
        assert!(document.dirs.is_empty() && document.section.is_empty());
        let dirs = [PathBuf::from("results/a/1/"), PathBuf::from("results/b/2")];
        let spliced = document.with(&dirs, "\nA table.\n\n").unwrap();
        let again = Document::parse(&spliced).unwrap();
        assert_eq!(again.dirs, [PathBuf::from("results/a/1"), PathBuf::from("results/b/2")]);
        assert_eq!(again.section, "A table.\n\n");
        assert_eq!(again.with(&[], "").as_deref(), Ok(text));
        let root = again.with(&["/".into()], "").unwrap();
        assert_eq!(Document::parse(&root).unwrap().dirs, [PathBuf::from("/")]);
        for dir in ["", "my results", "a-->b", "two\nlines"] {
            assert!(again.with(&[dir.into()], "").is_err(), "{dir}");
        }
    }

    #[test]
    fn what_is_no_section_is_refused() {
        for text in [
            "",
            "<!-- harness report -->\n",
            "<!-- end of harness report -->\n<!-- harness report -->",
            "<!-- harness report x",
        ] {
            assert!(Document::parse(text).is_err(), "{text}");
        }
    }
}
