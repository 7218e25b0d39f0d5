//go:build !hostile

package main

import "qmail/internal/system/env"

func hostile(string, *env.Env) {}
