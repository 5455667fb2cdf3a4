//! Records that cannot be trained on, by their reasons.

use std::path::Path;

use crate::data::encode::{Refusal, Rule};
use crate::data::records::Place;
use crate::data::report::{BAD_LISTED, LISTED};
use crate::setting::ON_BAD;
use crate::{Error, Result};

/// Records of one file with the same reason, or against the same rule.
struct Group {
    place: Place,
    rule: Rule,
    /// The reason of the first one.
    reason: String,
    /// True if the reasons of the others differ in their details.
    varies: bool,
    /// Numbers of the first ones.
    first: Vec<usize>,
    count: usize,
}

/// The bad records of a data set, grouped by file and reason in the order of their first occurrence.
#[derive(Default)]
pub(super) struct Bad {
    groups: Vec<Group>,
    /// Records whose reason is beyond the listed ones.
    others: usize,
}

impl Bad {
    pub(super) fn add(&mut self, place: &Place, number: usize, Refusal { rule, detail: reason }: Refusal) {
        let same_reason = |group: &Group| group.reason == reason || (group.rule == rule && rule != Rule::Readable);
        let same = |group: &Group| group.place.path == place.path && same_reason(group);
        match self.groups.iter().position(same) {
            Some(at) => {
                let group = &mut self.groups[at];
                group.count += 1;
                group.varies |= group.reason != reason;
                if group.first.len() <= LISTED {
                    group.first.push(number);
                }
            }
            None if self.groups.len() < BAD_LISTED => {
                self.groups.push(Group {
                    place: place.clone(),
                    rule,
                    reason,
                    varies: false,
                    first: vec![number],
                    count: 1,
                });
            }
            None => self.others += 1,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.others + self.groups.iter().map(|group| group.count).sum::<usize>()
    }

    /// One line for each reason with its records, and one for the rest.
    pub(super) fn lines(&self) -> Vec<String> {
        let several = self.groups.windows(2).any(|pair| pair[0].place.path != pair[1].place.path);
        let line = |group: &Group| {
            let list = group.place.list(&group.first, LISTED);
            let count = if group.count > 3 { format!(" ({} in all)", group.count) } else { String::new() };
            let file = if several { format!("{}, ", group.place.path.display()) } else { String::new() };
            let the_first = if group.varies { "the first " } else { "" };
            format!("{file}{list}{count}: {the_first}{}", group.reason)
        };
        let rest = (self.others > 0).then(|| format!("and {} more with other reasons", self.others));
        self.groups.iter().map(line).chain(rest).collect()
    }

    /// Refuses the data for its bad records: `read` is the number of all records.
    ///
    /// # Errors
    /// There are bad records.
    pub(super) fn refuse(&self, source: &Path, read: usize) -> Result<()> {
        let count = self.count();
        let advice = match count < read {
            true => format!("; {} leaves {} out", ON_BAD.is("drop"), if count == 1 { "it" } else { "them" }),
            false => String::new(),
        };
        match &self.groups[..] {
            [] => Ok(()),
            [Group { place, reason, first, count: 1, .. }] if self.others == 0 => {
                Err(place.error(first[0], format!("{reason}{advice}")))
            }
            [Group { place, reason, first, count, .. }] if self.others == 0 => {
                let list = place.list(first, LISTED);
                let problem = format!("{count} of {read} examples cannot be trained on ({list}); the first {reason}");
                Err(Error::file(&place.path, format!("{problem}{advice}")))
            }
            _ => {
                let lines = self.lines().join("\n  ");
                Err(Error::file(source, format!("{count} of {read} examples cannot be trained on{advice}\n  {lines}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_told_once_with_its_records() {
        let place = |name: &str| Place { path: name.into(), unit: "line" };
        let readable = |detail: &str| Refusal { rule: Rule::Readable, detail: detail.to_owned() };
        let mut bad = Bad::default();
        bad.add(&place("a"), 3, readable("is wrong"));
        let one = bad.refuse(Path::new("a"), 5).unwrap_err().to_string();
        assert_eq!(one, "a, line 3: is wrong; ⟨on-bad=drop⟩ leaves it out");
        bad.add(&place("a"), 4, readable("is wrong"));
        let same = bad.refuse(Path::new("a"), 2).unwrap_err().to_string();
        assert_eq!(same, "a: 2 of 2 examples cannot be trained on (lines 3, 4); the first is wrong");
        bad.add(&place("a"), 9, readable("is empty"));
        let several = bad.refuse(Path::new("a"), 30).unwrap_err().to_string();
        let expected = "a: 3 of 30 examples cannot be trained on; ⟨on-bad=drop⟩ leaves them out\n  lines 3, 4: is wrong\n  line 9: \
                        is empty";
        assert_eq!(several, expected);
        for number in 0..25 {
            bad.add(&place("b"), number, readable(&format!("problem {number}")));
        }
        let lines = bad.lines();
        assert_eq!((lines.len(), bad.count()), (BAD_LISTED + 1, 28));
        assert_eq!((lines[2].as_str(), lines[20].as_str()), ("b, line 0: problem 0", "and 7 more with other reasons"));
    }

    #[test]
    fn records_against_one_rule_are_one_reason() {
        let place = Place { path: "a".into(), unit: "line" };
        let mut bad = Bad::default();
        for end in ["x", "y"] {
            bad.add(&place, 3, Refusal { rule: Rule::EndsItsTurns, detail: format!("ends with {end}") });
        }
        assert_eq!(bad.lines(), ["lines 3, 3: the first ends with x"]);
        let message = bad.refuse(Path::new("a"), 2).unwrap_err().to_string();
        assert_eq!(message, "a: 2 of 2 examples cannot be trained on (lines 3, 3); the first ends with x");
    }
}
