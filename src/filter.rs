//! Which entries a move takes, by patterns in the manner of gitignore.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

use crate::model::RelPath;

/// One pattern, in the order given: the last that matches decides.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Leaves alone what matches.
    Exclude(String),
    /// Takes what matches. When there are only such rules, nothing else is taken.
    Include(String),
}

/// The patterns of a move. The default takes everything.
#[derive(Debug, Clone)]
pub struct Filter {
    rules: Gitignore,
    only_included: bool,
}

/// A pattern that can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("the pattern {pattern:?} cannot be used: {why}")]
pub struct BadPattern {
    pattern: String,
    why: String,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            rules: Gitignore::empty(),
            only_included: false,
        }
    }
}

impl Filter {
    /// Builds the filter of `rules`.
    pub fn new(rules: &[Rule]) -> Result<Self, BadPattern> {
        let mut builder = GitignoreBuilder::new("");
        for rule in rules {
            let (pattern, line) = match rule {
                Rule::Exclude(pattern) => (pattern, pattern.clone()),
                Rule::Include(pattern) => (pattern, format!("!{pattern}")),
            };
            let bad = |why: String| BadPattern {
                pattern: pattern.clone(),
                why,
            };
            if pattern.starts_with('!') {
                return Err(bad(
                    "it begins with \"!\"; use --include, or \"\\!\" for a name that does".into(),
                ));
            }
            if pattern.trim().is_empty() || pattern.starts_with('#') {
                return Err(bad("it would match nothing".into()));
            }
            if pattern.starts_with("./") || pattern.starts_with("../") {
                return Err(bad(
                    "it would match nothing: a pattern is a name, or a path from SRC that begins with \"/\"".into(),
                ));
            }
            builder.add_line(None, &line).map_err(|error| bad(error.to_string()))?;
        }
        let rules_built = builder.build().map_err(|error| BadPattern {
            pattern: String::new(),
            why: error.to_string(),
        })?;
        let only_included = !rules.is_empty() && rules.iter().all(|rule| matches!(rule, Rule::Include(_)));
        Ok(Self {
            rules: rules_built,
            only_included,
        })
    }

    /// Whether `path` is left alone. What is below an excluded directory must not be asked for.
    pub fn excludes(&self, path: &RelPath, is_dir: bool) -> bool {
        let path = std::path::Path::new(OsStr::from_bytes(path.as_bytes()));
        match self.rules.matched(path, is_dir) {
            Match::Ignore(_) => true,
            Match::Whitelist(_) => false,
            // With includes alone a directory is gone through, and a file taken when it or a directory above is included.
            Match::None if self.only_included && !is_dir => {
                !self.rules.matched_path_or_any_parents(path, is_dir).is_whitelist()
            }
            Match::None => false,
        }
    }

    /// Whether anything can be left alone at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(rules: &[Rule]) -> Filter {
        Filter::new(rules).unwrap()
    }

    fn takes(filter: &Filter, path: &str) -> bool {
        !filter.excludes(&RelPath::new(path).unwrap(), false)
    }

    fn exclude(pattern: &str) -> Rule {
        Rule::Exclude(pattern.into())
    }

    fn include(pattern: &str) -> Rule {
        Rule::Include(pattern.into())
    }

    #[test]
    fn excluded_by_name_anchor_and_kind() {
        let filter = filter(&[exclude("*.tmp"), exclude("/top"), exclude("cache/")]);
        assert!(!takes(&filter, "a/b.tmp"));
        assert!(!takes(&filter, "top") && takes(&filter, "a/top"));
        assert!(takes(&filter, "cache"));
        assert!(filter.excludes(&RelPath::new("a/cache").unwrap(), true));
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let keep = filter(&[exclude("*.log"), include("keep.log")]);
        assert!(!takes(&keep, "a.log") && takes(&keep, "keep.log"));
        let lose = filter(&[include("keep.log"), exclude("*.log")]);
        assert!(!takes(&lose, "keep.log"));
    }

    #[test]
    fn includes_alone_take_nothing_else() {
        let filter = filter(&[include("*.mkv"), include("music/")]);
        assert!(takes(&filter, "a/b.mkv") && takes(&filter, "music/a.flac") && !takes(&filter, "a/b.nfo"));
        assert!(!filter.excludes(&RelPath::new("a").unwrap(), true));
    }

    #[test]
    fn names_that_are_not_utf8_are_matched() {
        let filter = filter(&[exclude("*.tmp")]);
        assert!(filter.excludes(&RelPath::new(&b"a\xff.tmp"[..]).unwrap(), false));
        assert!(!filter.excludes(&RelPath::new(&b"a\xff"[..]).unwrap(), false));
    }

    #[test]
    fn patterns_that_would_mislead_are_refused() {
        for bad in ["!a", "", " ", "#a", "[z-a]", "./a", "../a"] {
            assert!(Filter::new(&[exclude(bad)]).is_err(), "{bad}");
        }
    }
}
