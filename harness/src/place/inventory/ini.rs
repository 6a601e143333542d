//! The INI form of an inventory.

use super::{ALL, Groups, InventoryError, MAX_HOSTS, Variables, error};

/// Most digits of a number in a range.
const MAX_DIGITS: usize = 10;
/// Hosts before the first group.
const UNGROUPED: &str = "ungrouped";

/// What the lines of a group's part are.
#[derive(Clone, Copy)]
enum Part {
    Hosts,
    Variables,
    Children,
}

pub(super) fn groups(text: &str) -> Result<Groups, InventoryError> {
    let mut groups = Groups::default();
    let mut group = UNGROUPED.to_owned();
    let mut part = Part::Hosts;
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &dyn std::fmt::Display| error(format!("line {}: {what}", number + 1));
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            let name = name.strip_suffix(']').ok_or_else(|| wrong(&"a group ends with ]"))?;
            (group, part) = match name.split_once(':') {
                None => (name.to_owned(), Part::Hosts),
                Some((group, "vars")) => (group.to_owned(), Part::Variables),
                Some((group, "children")) => (group.to_owned(), Part::Children),
                Some(_) => {
                    return Err(wrong(&format!("{name} is neither a group, its vars nor its children")));
                }
            };
            groups.group(&group);
            continue;
        }
        match part {
            Part::Hosts => host(&mut groups, &group, line).map_err(|what| wrong(&what))?,
            Part::Variables => {
                let (name, value) = line.split_once('=').ok_or_else(|| wrong(&"not NAME=VALUE"))?;
                let value = unquoted(value.trim()).to_owned();
                groups.group(&group).variables.insert(name.trim().to_owned(), value);
            }
            Part::Children => {
                if group == ALL || line == ALL {
                    return Err(wrong(&"every group is within all as it is"));
                }
                groups.group(line);
                groups.group(&group).children.insert(line.to_owned());
            }
        }
    }
    Ok(groups)
}

/// A line with a host, or several of the same kind, and variables.
fn host(groups: &mut Groups, group: &str, line: &str) -> Result<(), String> {
    let words = words(line)?;
    let Some((name, rest)) = words.split_first() else { return Ok(()) };
    let variables = rest.iter().map(|word| match word.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!("{word:?} is not NAME=VALUE")),
    });
    let variables: Variables = variables.collect::<Result<_, _>>()?;
    for name in spelled_out(name)? {
        groups.host(group, &name, variables.clone()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn unquoted(text: &str) -> &str {
    ['"', '\''].into_iter().find_map(|mark| text.strip_prefix(mark)?.strip_suffix(mark)).unwrap_or(text)
}

/// The words of a line, as a shell would see them: quotation marks keep words together, # or ; begins a comment.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = None;
    for c in line.chars() {
        match (quoted, c) {
            (Some(mark), c) if c == mark => quoted = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quoted = Some(c);
                word.get_or_insert_default();
            }
            (None, '#' | ';') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quoted.is_some() {
        return Err("a quotation mark is missing".into());
    }
    words.extend(word);
    Ok(words)
}

/// `pi[01:11]` spelled out, or the name alone. With a step: `[1:9:2]`.
fn spelled_out(name: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = name.split_once('[') else { return Ok(vec![name.to_owned()]) };
    let wrong = || format!("{name}: a range is [FIRST:LAST] or [FIRST:LAST:STEP], in numbers");
    let (range, after) = rest.split_once(']').ok_or_else(wrong)?;
    if after.contains('[') {
        return Err(format!("{name}: more than one range"));
    }
    let numbers: Vec<&str> = range.split(':').collect();
    let (first, last, step) = match numbers.as_slice() {
        [first, last] => (*first, *last, "1"),
        [first, last, step] => (*first, *last, *step),
        _ => return Err(wrong()),
    };
    if first.len() > MAX_DIGITS {
        return Err(wrong());
    }
    let width = if first.starts_with('0') { first.len() } else { 0 };
    let number = |text: &str| text.parse::<u32>().map_err(|_| wrong());
    let (first, last, step) = (number(first)?, number(last)?, number(step)?);
    if last < first || step == 0 {
        return Err(wrong());
    }
    if ((last - first) / step) as usize >= MAX_HOSTS {
        return Err(format!("more than {MAX_HOSTS} hosts"));
    }
    let steps = (first..=last).step_by(step as usize);
    Ok(steps.map(|number| format!("{before}{number:0width$}{after}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_spelled_out() {
        let names = |name: &str| spelled_out(name).unwrap().join(" ");
        assert_eq!(names("pi"), "pi");
        assert_eq!(names("pi[8:11]x"), "pi8x pi9x pi10x pi11x");
        assert_eq!(names("pi[08:10]"), "pi08 pi09 pi10");
        assert_eq!(names("pi[1:5:2]"), "pi1 pi3 pi5");
        for name in ["pi[1]", "pi[a:c]", "pi[2:1]", "pi[1:2", "pi[1:2:0]", "pi[1:2][1:2]", "pi[0:4294967295]"]
        {
            assert!(spelled_out(name).is_err(), "{name}");
        }
        assert!(
            spelled_out(&format!("pi[{}1:2]", "0".repeat(70_000))).is_err(),
            "wider than a number can be written"
        );
    }

    #[test]
    fn words_are_kept_together_by_quotation_marks() {
        assert_eq!(words("a 'b c'=\"d\" # e").unwrap(), ["a", "b c=d"]);
        assert_eq!(words("a=x#y ''").unwrap(), ["a=x#y", ""]);
        assert!(words("a \"b").is_err());
    }
}
