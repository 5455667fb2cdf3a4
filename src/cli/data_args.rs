//! The flags that say how data is read, shared by every subcommand that reads some.

use clap::Args;
use loraine::data::settings::{DataSettings, OnLong, Shape, TrainOn};

#[derive(Args, Clone)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Shape of every example [default: seen from the fields]
    #[arg(long, value_enum)]
    pub shape: Option<Shape>,
    /// Field that holds texts
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Field that holds prompts
    #[arg(long, value_name = "NAME")]
    pub prompt_field: Option<String>,
    /// Field that holds completions
    #[arg(long, value_name = "NAME")]
    pub completion_field: Option<String>,
    /// Field that holds lists of messages
    #[arg(long, value_name = "NAME")]
    pub messages_field: Option<String>,
    /// Chat template: a .jinja or .json file, or a name such as chatml [default: the model's own]
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    /// Tokens that the loss is taken over [default: assistant turns, completions, whole texts]
    #[arg(long, value_enum)]
    pub train_on: Option<TrainOn>,
    /// What happens to examples longer than the longest sequence
    #[arg(long, value_enum, default_value = "refuse")]
    pub on_long: OnLong,
    /// Let short examples share a slot of the batch
    #[arg(long)]
    pub packing: bool,
}

impl DataArgs {
    pub fn settings(&self, max_seq_len: usize) -> DataSettings {
        let args = self.clone();
        DataSettings {
            shape: args.shape,
            text_field: args.text_field,
            prompt_field: args.prompt_field,
            completion_field: args.completion_field,
            messages_field: args.messages_field,
            chat_template: args.chat_template,
            train_on: args.train_on,
            on_long: args.on_long,
            max_seq_len,
            packing: args.packing,
        }
    }
}
