"""An endpoint for agents: OpenAI's API over a sampler, with a record of every token."""
