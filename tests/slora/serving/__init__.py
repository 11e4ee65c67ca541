"""The plug-in of a vLLM server, without vLLM: `test_vllm_server` has the real one."""
