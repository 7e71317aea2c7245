"""Models on disk and on the Hugging Face Hub: `pretrained` folders, bundled models, model cards."""
