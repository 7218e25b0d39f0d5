//go:build !profile

package main

func profile(string) (stop func()) { return func() {} }
