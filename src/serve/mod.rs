//! Answers for several clients at once: requests and answers of OpenAI's protocol as JSON, and turns on one device. No HTTP: the
//! terminal program has the server.

pub mod answer;
pub mod fields;
pub mod refusal;
pub mod request;
pub mod service;
pub mod turns;
