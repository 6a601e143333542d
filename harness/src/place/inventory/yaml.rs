//! The YAML form of an inventory.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Groups, InventoryError, MAX_DEPTH, Variables, error};

/// A map in the order of the file.
struct Ordered<V>(Vec<(String, V)>);

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Ordered<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Ordered<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct YamlGroup {
    hosts: Option<Ordered<Option<Ordered<Value>>>>,
    vars: Option<Ordered<Value>>,
    children: Option<Ordered<Option<YamlGroup>>>,
}

/// A variable's value. Ansible's may be anything; lists and maps mean nothing to us.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Truth(bool),
    Number(i64),
    Fraction(f64),
    Text(String),
    Other(IgnoredAny),
}

impl Value {
    fn text(self) -> Option<String> {
        match self {
            Self::Truth(value) => Some(value.to_string()),
            Self::Number(value) => Some(value.to_string()),
            Self::Fraction(value) => Some(value.to_string()),
            Self::Text(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

fn variables(entries: Option<Ordered<Value>>) -> Variables {
    let entries = entries.unwrap_or_default().0.into_iter();
    entries.filter_map(|(name, value)| Some((name, value.text()?))).collect()
}

pub(super) fn groups(text: &str) -> Result<Groups, InventoryError> {
    let read: Option<Ordered<Option<YamlGroup>>> = serde_saphyr::from_str(text).map_err(|cause| {
        let text = cause.to_string();
        let first = text.lines().next().unwrap_or("not YAML");
        error(first.strip_prefix("error: ").unwrap_or(first))
    })?;
    let mut groups = Groups::default();
    for (name, group) in read.unwrap_or_default().0 {
        add(&mut groups, &name, group.unwrap_or_default(), 0)?;
    }
    Ok(groups)
}

fn add(groups: &mut Groups, name: &str, group: YamlGroup, depth: usize) -> Result<(), InventoryError> {
    if depth > MAX_DEPTH {
        return Err(error(format!("group {name} is too deep")));
    }
    groups.group(name).variables.extend(variables(group.vars));
    for (host, own) in group.hosts.unwrap_or_default().0 {
        groups.host(name, &host, variables(own))?;
    }
    for (child, group) in group.children.unwrap_or_default().0 {
        groups.group(name).children.insert(child.clone());
        add(groups, &child, group.unwrap_or_default(), depth + 1)?;
    }
    Ok(())
}
