//! Questions that need no story, and small talk.

use crate::Turn;
use crate::words::Dice;

const COLORS: [(&str, &str); 16] = [
    ("a banana", "yellow"),
    ("the sun", "yellow"),
    ("a lemon", "yellow"),
    ("grass", "green"),
    ("a frog", "green"),
    ("a leaf", "green"),
    ("snow", "white"),
    ("milk", "white"),
    ("a cloud", "white"),
    ("the sky", "blue"),
    ("the sea", "blue"),
    ("a strawberry", "red"),
    ("a fire truck", "red"),
    ("the night", "black"),
    ("a bear", "brown"),
    ("a pig", "pink"),
];
const SOUNDS: [(&str, &str); 9] = [
    ("dog", "woof"),
    ("cat", "meow"),
    ("duck", "quack"),
    ("pig", "oink"),
    ("sheep", "baa"),
    ("hen", "cluck"),
    ("frog", "ribbit"),
    ("mouse", "squeak"),
    ("horse", "neigh"),
];
const YOUNG: [(&str, &str); 7] = [
    ("dog", "puppy"),
    ("cat", "kitten"),
    ("duck", "duckling"),
    ("pig", "piglet"),
    ("sheep", "lamb"),
    ("hen", "chick"),
    ("horse", "foal"),
];
const OPPOSITES: [(&str, &str); 10] = [
    ("big", "small"),
    ("hot", "cold"),
    ("fast", "slow"),
    ("up", "down"),
    ("day", "night"),
    ("happy", "sad"),
    ("wet", "dry"),
    ("old", "young"),
    ("left", "right"),
    ("open", "closed"),
];
const NUMBERS: [&str; 10] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const HELLO: [(&str, &str); 8] = [
    ("Hello!", "Hello! How are you today?"),
    ("Hi!", "Hello! How are you today?"),
    ("Good morning.", "Good morning! Shall I tell you a story?"),
    ("How are you?", "I am fine, thank you."),
    ("Who are you?", "I am a little model that tells stories."),
    ("What can you do?", "I can tell you a story and answer questions."),
    ("Thank you!", "You are welcome!"),
    ("Goodbye.", "Goodbye! Come back soon."),
];

pub fn fact(dice: &mut Dice) -> Turn {
    match dice.below(5) {
        0 => {
            let (what, color) = *dice.pick(&COLORS);
            (format!("What color is {what}?"), format!("{} is {color}.", crate::words::capital(what)))
        }
        1 => {
            let (animal, sound) = *dice.pick(&SOUNDS);
            (format!("What does a {animal} say?"), format!("A {animal} says {sound}."))
        }
        2 => {
            let (animal, young) = *dice.pick(&YOUNG);
            (format!("What is a baby {animal} called?"), format!("A baby {animal} is called a {young}."))
        }
        3 => {
            let (one, two) = *dice.pick(&OPPOSITES);
            let (word, opposite) = if dice.below(2) == 0 { (one, two) } else { (two, one) };
            (format!("What is the opposite of {word}?"), format!("The opposite of {word} is {opposite}."))
        }
        _ => {
            let at = dice.below(NUMBERS.len() - 1);
            (format!("What comes after {}?", NUMBERS[at]), format!("After {} comes {}.", NUMBERS[at], NUMBERS[at + 1]))
        }
    }
}

pub fn small_talk(dice: &mut Dice) -> Vec<Turn> {
    let (said, answer) = *dice.pick(&HELLO);
    vec![(said.to_owned(), answer.to_owned())]
}
