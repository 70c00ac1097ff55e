//! The process's environment, read once: everything below is a function of this value.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
};
use tidegate_core::Secret;

/// Environment variables and working directory. Holds secrets, so it has no `Debug`.
#[derive(Default)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
    /// Names of variables whose value is not UTF-8.
    unreadable: Vec<String>,
    /// Where relative paths begin; empty means the working directory.
    directory: PathBuf,
}

impl Environment {
    /// That of this process.
    pub(crate) fn current() -> Self {
        let mut read = Self::default();
        for (name, value) in env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => drop(read.variables.insert(name, value)),
                Err(_) => read.unreadable.push(name),
            }
        }
        read
    }

    /// One for a test: these variables, and paths from `directory`.
    #[cfg(test)]
    pub(crate) fn of(directory: &Path, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Self { variables: variables.collect(), unreadable: Vec::new(), directory: directory.into() }
    }

    /// The key in the variable `named`, or in OPENAI_API_KEY if that is set.
    ///
    /// # Errors
    ///
    /// When the named variable is not there. Its name is not repeated: it may be the key itself,
    /// given by mistake.
    pub(crate) fn api_key(&self, named: Option<&str>) -> Result<Option<Secret<String>>, String> {
        let key = self.variable(named.unwrap_or("OPENAI_API_KEY"));
        let key = key.map(str::trim).filter(|key| !key.is_empty());
        match (key, named) {
            (None, Some(_)) => Err("--api-key-env: there is no such variable in the environment, \
                                    or it is empty; put the key into it (the flag takes the \
                                    variable's name, not the key)"
                .to_owned()),
            (key, _) => Ok(key.map(|key| Secret::new(key.to_owned()))),
        }
    }

    /// The value of a variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable is set to something that is not text.
    pub(crate) fn is_unreadable(&self, name: &str) -> bool {
        self.unreadable.iter().any(|other| other == name)
    }

    /// Names and values of the variables that begin with `prefix`, sorted by name.
    pub(crate) fn beginning_with<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.variables
            .range(prefix.to_owned()..)
            .take_while(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (&**name, &**value))
    }

    /// Names of the unreadable variables that begin with `prefix`.
    pub(crate) fn unreadable_beginning_with(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.unreadable.iter().map(String::as_str).filter(move |name| name.starts_with(prefix))
    }

    /// Where a path of the configuration is.
    pub(crate) fn locate(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_key_must_be_there() {
        let environment = Environment::of(Path::new(""), &[("MY_KEY", "sk-1"), ("EMPTY", "")]);
        let key = environment.api_key(Some("MY_KEY")).unwrap().unwrap();
        assert_eq!(key.expose(), "sk-1");
        assert!(environment.api_key(None).unwrap().is_none());
        assert!(environment.api_key(Some("EMPTY")).unwrap_err().contains("not the key"));
    }
}
