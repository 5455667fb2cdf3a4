//! The new behavior that the demo teaches: the same answers as a pirate would give them.

/// What the demo asks before and after; left out here, so that the answers show what was learned and not what was read.
pub const HELD_BACK: [&str; 4] = [
    "Tell me a story about a turtle and a horse.",
    "What is the opposite of big?",
    "What does a cat say?",
    "Who are you?",
];

pub fn speak(answer: &str) -> String {
    let body = answer.trim_end_matches(['.', '!', '?']);
    format!("Arr! {body}, matey!")
}
