//! The words of the stories, and the dice that choose among them.

use loraine::random::{Stream, bits};

/// Draws that depend on the seed and the record alone.
pub struct Dice {
    seed: u64,
    record: u64,
    draws: u64,
}

impl Dice {
    pub fn new(seed: u64, record: u64) -> Self {
        Self { seed, record, draws: 0 }
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.draws += 1;
        (bits(self.seed, Stream::Sampling, self.record, self.draws) % end as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

#[derive(Clone, Copy, PartialEq)]
pub struct Child {
    pub name: &'static str,
    pub he: &'static str,
    pub his: &'static str,
    pub kind: &'static str,
}

const GIRLS: [&str; 10] = ["Lily", "Mia", "Anna", "Sue", "Rose", "Emma", "Zoe", "Lucy", "Nora", "Ella"];
const BOYS: [&str; 10] = ["Tom", "Ben", "Max", "Sam", "Tim", "Leo", "Jack", "Finn", "Noah", "Paul"];
pub const ANIMALS: [&str; 14] =
    ["dog", "cat", "bird", "rabbit", "fox", "bear", "duck", "mouse", "horse", "frog", "pig", "sheep", "hen", "turtle"];
pub const THINGS: [&str; 16] = [
    "ball", "hat", "boat", "kite", "box", "book", "cup", "drum", "doll", "bell", "key", "lamp", "spoon", "shell",
    "stone", "coat",
];
pub const COLORS: [&str; 9] = ["red", "blue", "green", "yellow", "white", "black", "brown", "pink", "purple"];
pub const PLACES: [&str; 12] = [
    "in the garden",
    "at the lake",
    "by the river",
    "on the hill",
    "in the forest",
    "at the beach",
    "in the park",
    "behind the house",
    "under the old tree",
    "in the barn",
    "at the market",
    "on the farm",
];
pub const FOODS: [&str; 9] =
    ["a cake", "an apple", "a pear", "a carrot", "a nut", "a pie", "a cookie", "some bread", "some cheese"];
pub const WEATHER: [&str; 6] = ["sunny", "windy", "cold", "warm", "cloudy", "bright"];
pub const GLAD: [&str; 5] = ["happy", "proud", "glad", "excited", "cheerful"];

pub fn child(dice: &mut Dice) -> Child {
    if dice.below(2) == 0 {
        Child { name: dice.pick::<&str>(&GIRLS), he: "she", his: "her", kind: "girl" }
    } else {
        Child { name: dice.pick::<&str>(&BOYS), he: "he", his: "his", kind: "boy" }
    }
}

/// A choice other than `taken`.
pub fn other<T: PartialEq + Copy>(dice: &mut Dice, taken: T, draw: impl Fn(&mut Dice) -> T) -> T {
    loop {
        let drawn = draw(dice);
        if drawn != taken {
            return drawn;
        }
    }
}

pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}
