//! Names of a session's adapters.

use crate::setting::ADAPTER;
use crate::{Error, Result};

/// The name of the model without an adapter.
pub const BASE: &str = "base";

/// Names in the order of loading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterNames(Vec<String>);

impl AdapterNames {
    /// The names of the adapters, in the order in which they are loaded.
    ///
    /// # Errors
    /// A name is empty, is [`BASE`], or belongs to two adapters.
    pub fn new(names: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut known: Vec<String> = Vec::new();
        for name in names {
            if name.is_empty() {
                return Err(Error::setting(ADAPTER, "the name of an adapter is empty"));
            }
            if name == BASE {
                let problem = format!("`{BASE}` is the model without an adapter; give the adapter another name");
                return Err(Error::setting(ADAPTER, problem));
            }
            if known.contains(&name) {
                let problem = format!("two adapters are called `{name}`; give one of them another name");
                return Err(Error::setting(ADAPTER, problem));
            }
            known.push(name);
        }
        Ok(Self(known))
    }

    /// Returns the index of the adapter called `name`; `None` means the base.
    ///
    /// # Errors
    /// No adapter has this name; the error lists the names.
    pub fn index(&self, name: &str) -> Result<Option<usize>> {
        if name == BASE {
            return Ok(None);
        }
        let found = self.0.iter().position(|known| known == name);
        let unknown = || {
            let known: Vec<&str> = self.with_base().collect();
            Error::setting(ADAPTER, format!("there is no adapter `{name}`; there are: {}", known.join(", ")))
        };
        found.map(Some).ok_or_else(unknown)
    }

    /// Returns the name of an adapter by its index; `None` means the base.
    pub fn name(&self, adapter: Option<usize>) -> &str {
        adapter.and_then(|index| self.0.get(index)).map_or(BASE, String::as_str)
    }

    /// Names of the base and of every adapter.
    pub fn with_base(&self) -> impl Iterator<Item = &str> {
        std::iter::once(BASE).chain(self.0.iter().map(String::as_str))
    }

    /// Number of adapters, the base not counted.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is only the base.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unlike_and_found_again() {
        let named = |names: &[&str]| AdapterNames::new(names.iter().map(|name| (*name).to_owned()));
        let names = named(&["poet", "clerk"]).unwrap();
        assert_eq!((names.index("clerk").unwrap(), names.index(BASE).unwrap()), (Some(1), None));
        assert_eq!((names.name(Some(0)), names.name(None)), ("poet", BASE));
        let error = names.index("cook").unwrap_err().to_string();
        assert!(error.contains("`cook`") && error.contains("base, poet, clerk"), "{error}");
        for (names, says) in
            [(&["", "b"], "empty"), (&["a", "base"], "without an adapter"), (&["a", "a"], "two adapters")]
        {
            let error = named(names).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
