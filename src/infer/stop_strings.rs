//! Texts that end an answer. They are searched in the text, since they need not begin or end with a token.

/// Watches the pieces of an answer for texts that end it.
pub(super) struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far that may be the beginning of a stop string.
    held: String,
    found: bool,
}

impl StopStrings {
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), found: false }
    }

    /// True once a stop string was seen.
    pub(super) fn found(&self) -> bool {
        self.found
    }

    /// Adds a piece of text and returns what is certain to stand before any stop string.
    pub(super) fn push(&mut self, piece: &str) -> String {
        if self.found {
            return String::new();
        }
        self.held += piece;
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(at) = stops.clone().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.found = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let begun = |stop: &String| {
            let lengths = (1..=stop.len().min(self.held.len())).rev();
            lengths.filter(|n| stop.is_char_boundary(*n)).find(|n| self.held.ends_with(&stop[..*n])).unwrap_or(0)
        };
        let kept = self.held.len() - stops.map(begun).max().unwrap_or(0);
        let rest = self.held.split_off(kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Returns the text that was held back, at the end of an answer.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that is shown of `pieces`, and true if a stop string ended it.
    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut watch = StopStrings::new(stops);
        let mut text: String = pieces.iter().map(|piece| watch.push(piece)).collect();
        let found = watch.found();
        text += &watch.finish();
        (text, found)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string_even_across_pieces() {
        assert_eq!(shown(&["###"], &["a #", "# b", "##", "# c"]), ("a ## b".to_owned(), true));
        assert_eq!(shown(&["User:", "\n\n"], &["one\n", "\ntwo User:"]), ("one".to_owned(), true));
        assert_eq!(shown(&["ö"], &["sch", "ön"]), ("sch".to_owned(), true));
        assert_eq!(shown(&["aab"], &["aa", "ab"]), ("a".to_owned(), true));
    }

    #[test]
    fn a_text_without_a_stop_string_is_whole() {
        assert_eq!(shown(&["###", ""], &["a #", "# b", "##"]), ("a ## b##".to_owned(), false));
        assert_eq!(shown(&[], &["a", "", "b"]), ("ab".to_owned(), false));
        let stops = vec!["###".to_owned()];
        let mut watch = StopStrings::new(stops);
        assert_eq!(
            (watch.push("x#"), watch.push("y")),
            ("x".to_owned(), "#y".to_owned()),
            "what is safe comes at once"
        );
    }
}
