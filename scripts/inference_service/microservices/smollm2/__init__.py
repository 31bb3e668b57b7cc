"""SmolLM2-135M-Instruct, or any other GGUF model, on the CPU behind the TAO microservice contract."""
