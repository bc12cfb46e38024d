"""The shell towards SGLang: engines and routers over HTTP."""
