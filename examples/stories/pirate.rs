//! The new behaviour that the demo teaches: the same answers as a pirate would give them.

pub fn speak(answer: &str) -> String {
    let body = answer.trim_end_matches(['.', '!', '?']);
    format!("Arr! {body}, matey!")
}
