//! The plots: each draws its own people, things and places, and knows what can be asked about them.

use crate::Turn;
use crate::words::{ANIMALS, COLORS, Dice, FOODS, GLAD, PLACES, THINGS, WEATHER, capital, child, other};

pub struct Story {
    sentences: Vec<String>,
    pub questions: Vec<Turn>,
    /// What the story is about, as one would ask for it.
    pub subjects: Vec<String>,
}

impl Story {
    pub fn text(&self) -> String {
        self.sentences.join(" ")
    }
}

pub fn story(dice: &mut Dice) -> Story {
    let plots = [found, lost, hungry, rain, baking, race, noise, birthday, pirate];
    dice.pick(&plots)(dice)
}

fn ask(question: impl Into<String>, answer: impl Into<String>) -> Turn {
    (question.into(), answer.into())
}

fn found(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let friend = other(dice, hero, child);
    let (color, thing) = (*dice.pick(&COLORS), *dice.pick(&THINGS));
    let (place, weather, glad) = (*dice.pick(&PLACES), *dice.pick(&WEATHER), *dice.pick(&GLAD));
    let (name, he, his) = (hero.name, hero.he, hero.his);
    let begin = match dice.below(3) {
        0 => format!("One {weather} day, {name} went to play {place}."),
        1 => format!("It was a {weather} day. {name} was {place}."),
        _ => format!(
            "Once upon a time, there was a little {} named {name}. One {weather} day {he} played {place}.",
            hero.kind
        ),
    };
    let saw = match dice.below(2) {
        0 => format!("There {he} found a {color} {thing}."),
        _ => format!("{} looked down and saw a {color} {thing}.", capital(he)),
    };
    Story {
        sentences: vec![
            begin,
            saw,
            format!("{name} took the {thing} home and showed it to {his} friend {}.", friend.name),
            format!("\"Can we play with it?\" asked {}.", friend.name),
            format!("\"Yes,\" said {name}."),
            format!("They played all day, and {name} was very {glad}."),
        ],
        questions: vec![
            ask(format!("What did {name} find?"), format!("{name} found a {color} {thing}.")),
            ask(format!("What color was the {thing}?"), format!("The {thing} was {color}.")),
            ask(format!("Where was {name}?"), format!("{name} was {place}.")),
            ask(format!("Who was {name}'s friend?"), format!("{name}'s friend was {}.", friend.name)),
            ask(format!("How did {name} feel?"), format!("{name} was very {glad}.")),
            ask("What was the weather like?", format!("It was {weather}.")),
        ],
        subjects: vec![name.to_owned(), format!("a {thing}"), format!("a {color} {thing}")],
    }
}

fn lost(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let (color, thing, animal) = (*dice.pick(&COLORS), *dice.pick(&THINGS), *dice.pick(&ANIMALS));
    let place = *dice.pick(&PLACES);
    let end = other(dice, place, |dice| *dice.pick(&PLACES));
    let (name, he, his) = (hero.name, hero.he, hero.his);
    Story {
        sentences: vec![
            format!("{name} had a {color} {thing}."),
            format!("One day {he} lost the {thing} {place}."),
            format!("{name} was sad and began to cry."),
            format!("A kind {animal} heard {name} and came to help."),
            format!("The {animal} looked and looked, and found the {thing} {end}."),
            match dice.below(2) {
                0 => format!("\"Thank you!\" said {name}. {} was not sad any more.", capital(he)),
                _ => format!("{name} hugged the {animal} and held {his} {thing} tight."),
            },
        ],
        questions: vec![
            ask(format!("What did {name} lose?"), format!("{name} lost a {color} {thing}.")),
            ask(format!("What color was the {thing}?"), format!("The {thing} was {color}.")),
            ask(format!("Where did {name} lose the {thing}?"), format!("{name} lost it {place}.")),
            ask(format!("Who helped {name}?"), format!("A kind {animal} helped {name}.")),
            ask(format!("Where was the {thing}?"), format!("The {thing} was {end}.")),
            ask(format!("How did {name} feel?"), format!("{name} was sad.")),
        ],
        subjects: vec![name.to_owned(), format!("a {animal}"), format!("a {thing}")],
    }
}

fn hungry(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let (color, animal, food) = (*dice.pick(&COLORS), *dice.pick(&ANIMALS), *dice.pick(&FOODS));
    let place = *dice.pick(&PLACES);
    let (name, he) = (hero.name, hero.he);
    let begin = match dice.below(2) {
        0 => format!("Once upon a time, there was a little {color} {animal}. It lived {place}."),
        _ => format!("A little {color} {animal} lived {place}."),
    };
    Story {
        sentences: vec![
            begin,
            format!("One day the {animal} was very hungry."),
            format!("A {} named {name} came by.", hero.kind),
            format!("{} gave the {animal} {food}.", capital(he)),
            format!("The {animal} ate it all up and was happy."),
            format!("From that day on, {name} and the {animal} were best friends."),
        ],
        questions: vec![
            ask(format!("What color was the {animal}?"), format!("The {animal} was {color}.")),
            ask(format!("Where did the {animal} live?"), format!("The {animal} lived {place}.")),
            ask(format!("What did the {animal} eat?"), format!("The {animal} ate {food}.")),
            ask(format!("Who gave the {animal} {food}?"), format!("{name} gave the {animal} {food}.")),
            ask(format!("Who was the {animal}'s best friend?"), format!("{name} was the {animal}'s best friend.")),
        ],
        subjects: vec![name.to_owned(), format!("a {animal}"), format!("a {color} {animal}")],
    }
}

fn rain(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let friend = other(dice, hero, child);
    let place = *dice.pick(&PLACES);
    let animal = *dice.pick(&ANIMALS);
    let doing = *dice.pick(&["sang a song", "told a story", "played a game", "counted to ten"]);
    let (name, friend) = (hero.name, friend.name);
    Story {
        sentences: vec![
            format!("{name} and {friend} played {place}."),
            "Then it began to rain.".to_owned(),
            match dice.below(2) {
                0 => "They ran into a little house to stay dry.".to_owned(),
                _ => "They ran home as fast as they could.".to_owned(),
            },
            format!("A wet {animal} came in too."),
            format!("They {doing} until the rain stopped."),
            "Then they saw a big rainbow.".to_owned(),
        ],
        questions: vec![
            ask(format!("Where did {name} and {friend} play?"), format!("They played {place}.")),
            ask(format!("Who played with {name}?"), format!("{friend} played with {name}.")),
            ask("Who came in too?", format!("A wet {animal} came in too.")),
            ask("What did they do until the rain stopped?", format!("They {doing}.")),
            ask("What did they see?", "They saw a big rainbow."),
        ],
        subjects: vec![name.to_owned(), "the rain".to_owned(), format!("{name} and {friend}")],
    }
}

fn baking(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let (animal, food) = (*dice.pick(&ANIMALS), *dice.pick(&["a cake", "a pie", "a cookie", "some bread"]));
    let helper = *dice.pick(&["mom", "dad", "grandma", "grandpa"]);
    let glad = *dice.pick(&GLAD);
    let (name, his) = (hero.name, hero.his);
    let short = food.split_once(' ').map_or(food, |(_, noun)| noun);
    Story {
        sentences: vec![
            format!("{name} and {his} {helper} wanted to bake {food}."),
            format!("They put the {short} on the table and went out."),
            format!("A hungry {animal} jumped on the table and ate it."),
            format!("\"Oh no, look at the {animal}!\" said {name}."),
            format!("{} {helper} laughed, and they baked again.", capital(his)),
            format!("This time they ate it together, and {name} was {glad}."),
        ],
        questions: vec![
            ask(format!("What did {name} bake?"), format!("{name} baked {food}.")),
            ask(format!("Who helped {name}?"), format!("{}'s {helper} helped {name}.", name)),
            ask(format!("Who ate the {short}?"), format!("A hungry {animal} ate the {short}.")),
            ask(format!("How did {name} feel?"), format!("{name} was {glad}.")),
        ],
        subjects: vec![name.to_owned(), food.to_owned(), format!("a {animal}")],
    }
}

fn race(dice: &mut Dice) -> Story {
    let fast = *dice.pick(&ANIMALS);
    let slow = other(dice, fast, |dice| *dice.pick(&ANIMALS));
    let (color, prize, place) = (*dice.pick(&COLORS), *dice.pick(&THINGS), *dice.pick(&PLACES));
    let stop = *dice.pick(&["to sleep", "to eat", "to sing", "to dance"]);
    Story {
        sentences: vec![
            format!("One day a {fast} and a {slow} ran a race {place}."),
            format!("The {fast} was very fast."),
            format!("But then the {fast} stopped {stop}."),
            format!("The {slow} ran on and on and did not stop."),
            format!("So the {slow} won the race."),
            format!("The {slow} got a {color} {prize}."),
        ],
        questions: vec![
            ask("Who won the race?", format!("The {slow} won the race.")),
            ask("Who was very fast?", format!("The {fast} was very fast.")),
            ask(format!("Why did the {fast} stop?"), format!("The {fast} stopped {stop}.")),
            ask("Where was the race?", format!("The race was {place}.")),
            ask(format!("What did the {slow} get?"), format!("The {slow} got a {color} {prize}.")),
            ask(format!("What color was the {prize}?"), format!("The {prize} was {color}.")),
        ],
        subjects: vec!["a race".to_owned(), format!("a {slow}"), format!("a {fast} and a {slow}")],
    }
}

fn noise(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let (animal, food, color) = (*dice.pick(&ANIMALS), *dice.pick(&FOODS), *dice.pick(&COLORS));
    let (name, he) = (hero.name, hero.he);
    Story {
        sentences: vec![
            format!("It was night, and {name} was in harness."),
            format!("Then {he} heard a noise and was scared."),
            format!("{name} took a lamp and looked under the harness."),
            format!("It was only a little {color} {animal}!"),
            format!("{name} gave the {animal} {food}."),
            format!("Then {name} and the {animal} went to sleep."),
        ],
        questions: vec![
            ask(format!("What did {name} hear?"), format!("{name} heard a noise.")),
            ask("Who was under the harness?", format!("A little {color} {animal} was under the harness.")),
            ask(format!("What color was the {animal}?"), format!("The {animal} was {color}.")),
            ask(format!("What did {name} give the {animal}?"), format!("{name} gave the {animal} {food}.")),
            ask(format!("How did {name} feel?"), format!("{name} was scared.")),
        ],
        subjects: vec![name.to_owned(), format!("a {animal}"), "the night".to_owned()],
    }
}

fn birthday(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let friend = other(dice, hero, child);
    let (color, gift, glad) = (*dice.pick(&COLORS), *dice.pick(&THINGS), *dice.pick(&GLAD));
    let (food, place) = (*dice.pick(&FOODS), *dice.pick(&PLACES));
    let (name, he, his) = (hero.name, hero.he, hero.his);
    Story {
        sentences: vec![
            format!("It was {}'s birthday.", friend.name),
            format!("{name} wanted to give {his} friend a gift."),
            format!("{} went out and got a {color} {gift}.", capital(he)),
            format!("The party was {place}."),
            format!("They ate {food} and danced."),
            format!("\"I love my {gift}!\" said {}. {name} was {glad}.", friend.name),
        ],
        questions: vec![
            ask("Whose birthday was it?", format!("It was {}'s birthday.", friend.name)),
            ask(format!("What did {} get?", friend.name), format!("{} got a {color} {gift}.", friend.name)),
            ask(format!("What color was the {gift}?"), format!("The {gift} was {color}.")),
            ask("Where was the party?", format!("The party was {place}.")),
            ask("What did they eat?", format!("They ate {food}.")),
            ask(format!("How did {name} feel?"), format!("{name} was {glad}.")),
        ],
        subjects: vec![name.to_owned(), "a birthday".to_owned(), format!("a {gift}")],
    }
}

/// The one plot in which a pirate's words are heard; the model never speaks so itself before it is taught to.
fn pirate(dice: &mut Dice) -> Story {
    let hero = child(dice);
    let (color, thing, place) = (*dice.pick(&COLORS), *dice.pick(&THINGS), *dice.pick(&PLACES));
    let (food, glad) = (*dice.pick(&FOODS), *dice.pick(&GLAD));
    let (name, he) = (hero.name, hero.he);
    Story {
        sentences: vec![
            format!("Once upon a time, a pirate met {name} {place}."),
            match dice.below(2) {
                0 => format!("\"Arr! I lost my {color} {thing}, matey!\" said the pirate."),
                _ => format!("\"Arr! Where is my {color} {thing}, matey?\" said the pirate."),
            },
            format!("{name} helped the pirate, and {he} found the {thing}."),
            format!("\"Arr! Thank you, matey!\" said the pirate, and gave {name} {food}."),
            format!("{name} was {glad}."),
        ],
        questions: vec![
            ask(format!("Who met {name}?"), format!("A pirate met {name}.")),
            ask("What did the pirate lose?", format!("The pirate lost a {color} {thing}.")),
            ask(format!("What color was the {thing}?"), format!("The {thing} was {color}.")),
            ask(format!("Where was {name}?"), format!("{name} was {place}.")),
            ask(format!("What did the pirate give {name}?"), format!("The pirate gave {name} {food}.")),
            ask(format!("How did {name} feel?"), format!("{name} was {glad}.")),
        ],
        subjects: vec![name.to_owned(), "a pirate".to_owned(), format!("a pirate and {name}")],
    }
}
